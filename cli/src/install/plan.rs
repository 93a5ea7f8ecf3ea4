//! Which file is to be written, and with what.
//!
//! A file of our own, imported by the main one, is the better place: nobody else edits it. But containerd 1.6 and
//! 1.7 replace a plugin's whole table by that of a later file, so a drop-in with a handler alone throws away
//! the main file's CRI settings (containerd 2 merges). Nothing is concluded from version numbers: containerd
//! itself is asked, with `config dump` on a copy, whether everything is as before but for the handler.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{
    Options,
    containerd::{self, Dump, Version, Wanted},
    docker, files,
    host::{Containerd, Host, USUAL_PATH},
};

/// A file to write.
#[derive(Debug)]
pub struct Write {
    pub path: PathBuf,
    pub before: Option<String>,
    pub after: String,
}

/// What is to be done for one engine.
#[derive(Debug, Default)]
pub struct Plan {
    pub write: Option<Write>,
    pub notes: Vec<String>,
}

fn text(host: &Host, path: &Path) -> Result<Option<String>> {
    files::read(&host.at(path))?
        .map(|bytes| String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display())))
        .transpose()
}

/// For Docker.
pub fn docker(host: &Host, path: &Path) -> Result<Plan> {
    let left = || format!("{} is left as it is", path.display());
    let version = host.docker_version()?;
    if let Some(version) = &version {
        docker::check_version(version).with_context(left)?;
    }
    let before = text(host, path)?;
    let after = docker::with_runtime(before.as_deref().unwrap_or_default()).with_context(left)?;
    let unchecked = version.is_none() && after.is_some();
    Ok(Plan {
        write: after.map(|after| Write {
            path: path.to_owned(),
            before,
            after,
        }),
        notes: unchecked
            .then(|| {
                "there is no dockerd to ask for its version: one before 24 ignores this and keeps nothing"
                    .into()
            })
            .into_iter()
            .collect(),
    })
}

/// An import of the main file, as containerd will find it.
enum Import {
    Path(String),
    /// A pattern with one `*` in its last component.
    Pattern(PathBuf),
}

/// For containerd.
pub fn containerd(host: &Host, options: &Options) -> Result<Plan> {
    let main = &options.containerd_config;
    let left = || format!("{} is left as it is", main.display());
    let wanted = Wanted {
        runtime_path: (!USUAL_PATH.iter().any(|dir| Path::new(dir) == options.bin_dir))
            .then(|| options.bin_dir.join(super::SHIM)),
    };
    let containerd = host.find_containerd(options.containerd_bin.as_deref())?;
    let mut notes = Vec::new();

    let old = text(host, main)?;
    let blank = old.as_deref().is_none_or(containerd::is_blank);
    let (base, version) = match &old {
        Some(text) if !blank => (text.clone(), containerd::version(text).with_context(left)?),
        _ => {
            let Some(major) = containerd.as_ref().and_then(Containerd::major) else {
                bail!(
                    "{} says nothing, and there is no containerd in {} to ask for its version: name it with --containerd-bin, or the file with --containerd-config",
                    main.display(),
                    USUAL_PATH.join(", ")
                );
            };
            let version = Version::for_containerd(major);
            let comments = old.as_deref().unwrap_or_default();
            (format!("{comments}{}", version.empty_file()), version)
        }
    };
    let before = match &containerd {
        // 1.x refuses a file that is named and missing.
        Some(containerd) if old.is_none() => {
            Some(containerd.dump_texts(|scratch| Ok(vec![(scratch.join("config.toml"), String::new())]))?)
        }
        Some(containerd) => Some(containerd.dump(main).with_context(left)?),
        None => {
            notes.push(format!(
                "no containerd in {}: nobody has checked that it takes this (--containerd-bin)",
                USUAL_PATH.join(", ")
            ));
            None
        }
    };
    // Its tables are not in the dump then.
    let off = before.as_ref().is_some_and(Dump::cri_is_disabled);
    if off {
        notes.push(format!(
            "the CRI plugin is disabled in {}: a kubelet cannot use this containerd before it is enabled",
            main.display()
        ));
    }
    let prover = containerd
        .as_ref()
        .zip(before.as_ref())
        .filter(|_| !off)
        .map(|(containerd, before)| Prover {
            containerd,
            before,
            host,
            main,
        });

    let imports = imports(main, &base)?;
    if let Some(path) = file_with_handler(host, main, &imports)? {
        let before = text(host, &path)?.unwrap_or_default();
        let refused = || format!("{} is left as it is", path.display());
        let after = containerd::with_handler(&before, &wanted).with_context(refused)?;
        if after.is_none()
            && let Some(prover) = &prover
            && !prover.before.has_whole_handler()
        {
            bail!(
                "the handler is in {}, but `containerd config dump` does not show it: another imported file replaces the CRI plugin's settings (containerd 1.x does not merge them); put the handler into that one with --containerd-config",
                path.display()
            );
        }
        let write = after.map(|after| Write {
            path,
            before: Some(before),
            after,
        });
        return Ok(Plan { write, notes });
    }
    if let Some(prover) = &prover {
        for import in &imports {
            let Import::Pattern(pattern) = import else {
                continue;
            };
            let Some(path) = containerd::drop_in_path(pattern) else {
                continue;
            };
            // One of that name which holds something else is not ours to replace.
            if host.at(&path).exists() {
                continue;
            }
            let text = containerd::drop_in(version, &wanted);
            let proof = prover.first_that_holds(text, |text| prover.drop_in(&base, &imports, &path, text));
            if let Ok(after) = proof {
                let write = Write {
                    path,
                    before: None,
                    after,
                };
                return Ok(Plan {
                    write: Some(write),
                    notes,
                });
            }
        }
    }
    let mut after = containerd::with_handler(&base, &wanted)
        .with_context(left)?
        .context("the handler has just been looked for in vain")?;
    if let Some(prover) = &prover {
        after = prover
            .first_that_holds(after, |text| prover.in_place(text, &imports))
            .with_context(left)?;
    }
    let write = Write {
        path: main.clone(),
        before: old,
        after,
    };
    Ok(Plan {
        write: Some(write),
        notes,
    })
}

/// What the main file imports. The default that `config dump` of 2.2 and later prints is not followed.
fn imports(main: &Path, base: &str) -> Result<Vec<Import>> {
    let list = containerd::imports(base)?.unwrap_or_default();
    let folder = main.parent().unwrap_or(Path::new("/"));
    Ok(list
        .into_iter()
        .map(|entry| {
            let path = folder.join(&entry);
            match containerd::drop_in_path(&path) {
                Some(_) => Import::Pattern(path),
                None => Import::Path(path.to_string_lossy().into_owned()),
            }
        })
        .collect())
}

/// The file that has a handler of our name: the main one, or one that it imports.
fn file_with_handler(host: &Host, main: &Path, imports: &[Import]) -> Result<Option<PathBuf>> {
    let mut files = vec![main.to_owned()];
    for import in imports {
        match import {
            Import::Path(path) => files.push(path.into()),
            Import::Pattern(pattern) => files.extend(host.matches(pattern, containerd::fits)),
        }
    }
    for path in files {
        // Another's file that cannot be read or understood is containerd's business.
        if let Ok(Some(text)) = text(host, &path)
            && containerd::has_handler(&text).unwrap_or(false)
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Asks containerd what it makes of a change.
struct Prover<'a> {
    containerd: &'a Containerd<'a>,
    before: &'a Dump,
    host: &'a Host,
    main: &'a Path,
}

impl Prover<'_> {
    /// The text alone, or else with the handlers that containerd has by default.
    fn first_that_holds(&self, text: String, holds: impl Fn(&str) -> Result<()>) -> Result<String> {
        let Err(refused) = holds(&text) else {
            return Ok(text);
        };
        let Some(missing) = self.before.defaults_missing_in(&text)? else {
            return Err(refused);
        };
        let whole = format!("{text}{missing}");
        holds(&whole).map(|()| whole)
    }

    /// A drop-in that is not there yet, in the place where its name would put it.
    fn drop_in(&self, base: &str, imports: &[Import], path: &Path, text: &str) -> Result<()> {
        let after = self.containerd.dump_texts(|scratch| {
            let ours = scratch.join("drop-in.toml");
            let mut list = Vec::new();
            let mut placed = false;
            for import in imports {
                match import {
                    Import::Path(path) => list.push(path.clone()),
                    Import::Pattern(pattern) => {
                        let mut found = self.host.matches(pattern, containerd::fits);
                        if !placed && containerd::drop_in_path(pattern).as_deref() == Some(path) {
                            found.push(path.to_owned());
                            found.sort();
                            placed = true;
                        }
                        list.extend(found.iter().map(|found| {
                            let here = if found == path { &ours } else { found };
                            here.to_string_lossy().into_owned()
                        }));
                    }
                }
            }
            let main = containerd::with_imports(base, &list)?;
            Ok(vec![(scratch.join("config.toml"), main), (ours, text.to_owned())])
        })?;
        self.same_but_for_the_handler(&after)
    }

    /// The main file with another text.
    fn in_place(&self, text: &str, imports: &[Import]) -> Result<()> {
        let after = self.containerd.dump_texts(|scratch| {
            // Imports may be relative to the file's own folder.
            let text = if containerd::imports(text)?.is_some() {
                let list: Vec<String> = imports
                    .iter()
                    .map(|import| match import {
                        Import::Path(path) => path.clone(),
                        Import::Pattern(pattern) => pattern.to_string_lossy().into_owned(),
                    })
                    .collect();
                containerd::with_imports(text, &list)?
            } else {
                text.to_owned()
            };
            Ok(vec![(scratch.join("config.toml"), text)])
        })?;
        self.same_but_for_the_handler(&after)
    }

    fn same_but_for_the_handler(&self, after: &Dump) -> Result<()> {
        if let Some(setting) = self.before.lost(after) {
            bail!(
                "with the handler in {}, containerd would change {setting} too",
                self.main.display()
            );
        }
        if !after.has_whole_handler() {
            bail!(
                "with the handler in {}, `containerd config dump` does not show it: another imported file replaces the CRI plugin's settings (containerd 1.x does not merge them); put the handler into that one with --containerd-config",
                self.main.display()
            );
        }
        Ok(())
    }
}
