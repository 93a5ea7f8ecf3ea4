//! Signatures of commits: with them a history can be proven to somebody who does not trust the node that keeps it.
//!
//! What is signed is the commit's name, which proves everything under it and before it. The signature stands beside the commit,
//! not in it. Keys are Ed25519, in the files that OpenSSL makes of them (PKCS #8 and SPKI, PEM).

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ed25519_dalek::{
    Signature, Signer as _, SigningKey, VerifyingKey,
    pkcs8::{
        DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes,
        spki::der::pem::LineEnding,
    },
};

use crate::{
    error::{Context, Error, Result},
    id::{Hash, Id},
    sys,
};

/// What a signature says: that it is of a commit of a store with this hash, and of which.
fn message(hash: Hash, commit: Id) -> Vec<u8> {
    let mut message = b"diffkeeper commit\0".to_vec();
    message.push(hash as u8);
    message.extend_from_slice(&commit.0);
    message
}

/// Signs commits.
pub struct Signer(SigningKey);

impl Signer {
    /// Makes a key: the file, which only its owner can read, and beside it, with `.pub` behind its name, the public one.
    ///
    /// # Errors
    /// A file that is there already, a full or failing disk.
    pub fn make(path: &Path) -> Result<PathBuf> {
        let random = Path::new("/dev/urandom");
        let mut secret = [0; 32];
        File::open(random)
            .and_then(|mut file| file.read_exact(&mut secret))
            .on("read", random)?;
        let key = SigningKey::from_bytes(&secret);
        let encode =
            |error: &dyn std::fmt::Display| Error::Refused(format!("the key cannot be written: {error}"));
        // Without the public key in it, which OpenSSL does not know to be allowed.
        let private = KeypairBytes {
            secret_key: secret,
            public_key: None,
        };
        let private = private
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| encode(&error))?;
        let public = key
            .verifying_key()
            .to_public_key_pem(LineEnding::LF)
            .map_err(|error| encode(&error))?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(".pub");
        let beside = PathBuf::from(beside);
        for (path, text) in [(path, private.as_bytes()), (&beside, public.as_bytes())] {
            let file = sys::create(path)?;
            sys::write(&file, path, text, 0)?;
            sys::sync(&file, path)?;
        }
        Ok(beside)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// A file that others than its owner can read or write, or that is no such key.
    pub fn read(path: &Path) -> Result<Signer> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .on("open", path)?;
        let about = file.metadata().on("look at", path)?;
        if !about.is_file() || about.mode() & 0o077 != 0 {
            return Err(Error::Refused(format!(
                "the signing key {} can be used by others than its owner (mode {:o}): chmod 600 it, and make a new one if they \
                 may have read it",
                path.display(),
                about.mode() & 0o7777
            )));
        }
        if about.uid() != nix::unistd::geteuid().as_raw() {
            return Err(Error::Refused(format!(
                "the signing key {} belongs to user {}: chown it to whoever the keeper runs as",
                path.display(),
                about.uid()
            )));
        }
        let text = text(file).on("read", path)?;
        let key = SigningKey::from_pkcs8_pem(&text).map_err(|error| {
            Error::Refused(format!(
                "{} is no Ed25519 key in PKCS #8 ({error}): diffkeeper keygen makes one",
                path.display()
            ))
        })?;
        Ok(Signer(key))
    }

    /// The signature of a commit.
    pub(crate) fn sign(&self, hash: Hash, commit: Id) -> Vec<u8> {
        self.0.sign(&message(hash, commit)).to_bytes().to_vec()
    }
}

/// Says whether a signature is right.
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// The key of a file's text.
    ///
    /// # Errors
    /// Text that is no such key.
    pub fn parse(text: &str) -> Result<PublicKey> {
        let key = VerifyingKey::from_public_key_pem(text).map_err(|error| {
            Error::Refused(format!(
                "this is no public Ed25519 key ({error}): diffkeeper keygen writes one beside the secret one, as .pub"
            ))
        })?;
        Ok(PublicKey(key))
    }

    /// Whether this key signed a commit.
    pub(crate) fn signed(&self, hash: Hash, commit: Id, signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.0.verify_strict(&message(hash, commit), &signature).is_ok())
    }
}

/// A short file's text.
fn text(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(16 << 10).read_to_string(&mut text)?;
    Ok(text)
}
