//! The streams behind CRI's `Exec` and `Attach`: the WebSocket that their URL leads to, and the channels in it. Their
//! server speaks SPDY as well, with the same pipes behind it; Rust has no client for that.

use std::{net::TcpStream, time::Duration};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use tungstenite::{ClientRequestBuilder, Message, WebSocket, http::Uri};

/// What containerd's server speaks in all versions (1.6 to 2.1 refuse v5). It cannot end the standard input alone.
const PROTOCOL: &str = "v4.channel.k8s.io";

/// No single message takes longer.
const LIMIT: Duration = Duration::from_secs(30);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// The streams of a process.
pub struct Stream {
    socket: WebSocket<TcpStream>,
    /// What came on standard output so far.
    pub stdout: Vec<u8>,
    /// What came on standard error so far.
    pub stderr: Vec<u8>,
    end: Option<Value>,
}

impl Stream {
    /// Connects to where the service said.
    ///
    /// # Errors
    /// When nobody listens there, or does not speak the protocol.
    pub fn open(url: &str) -> Result<Stream> {
        let uri: Uri = url.replacen("http", "ws", 1).parse()?;
        let address = uri.authority().context("an URL without a host")?.as_str();
        let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(PROTOCOL);
        let (socket, _) = tungstenite::client(request, stream).map_err(|e| anyhow!("{url}: {e}"))?;
        Ok(Stream {
            socket,
            stdout: Vec::new(),
            stderr: Vec::new(),
            end: None,
        })
    }

    fn write(&mut self, channel: u8, data: &[u8]) -> Result<()> {
        let frame: Vec<u8> = [&[channel], data].concat();
        Ok(self.socket.send(Message::binary(frame))?)
    }

    /// Writes to standard input.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, data: &[u8]) -> Result<()> {
        self.write(STDIN, data)
    }

    /// Tells the terminal's size.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn resize(&mut self, width: u16, height: u16) -> Result<()> {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}");
        self.write(RESIZE, size.as_bytes())
    }

    /// Takes one message. Answers whether there may be more.
    fn take(&mut self) -> Result<bool> {
        let frame = match self.socket.read() {
            Ok(Message::Binary(frame)) => frame,
            Ok(Message::Close(_)) | Err(tungstenite::Error::ConnectionClosed) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(error) => return Err(error).context("read from the stream"),
        };
        match frame.split_first() {
            Some((&STDOUT, data)) => self.stdout.extend_from_slice(data),
            Some((&STDERR, data)) => self.stderr.extend_from_slice(data),
            Some((&ERROR, data)) if !data.is_empty() => self.end = Some(serde_json::from_slice(data)?),
            // An empty message opens a channel.
            Some((_, [])) | None => {}
            Some((channel, data)) => bail!("{data:?} on channel {channel}"),
        }
        Ok(true)
    }

    /// Reads until enough has come on standard output.
    ///
    /// # Errors
    /// When the stream ends before, or nothing comes for half a minute.
    pub fn until(&mut self, enough: impl Fn(&[u8]) -> bool) -> Result<()> {
        while !enough(&self.stdout) {
            ensure!(
                self.take()?,
                "it ended after {:?}",
                String::from_utf8_lossy(&self.stdout)
            );
        }
        Ok(())
    }

    /// Reads to the end, and answers with the process's exit status.
    ///
    /// # Errors
    /// When nothing comes for half a minute, or what comes last is no status.
    pub fn exit(&mut self) -> Result<i32> {
        while self.take()? {}
        let end = self.end.as_ref().context("it ended without a status")?;
        if end["status"] == "Success" {
            return Ok(0);
        }
        let causes = end["details"]["causes"].as_array();
        let code = causes
            .into_iter()
            .flatten()
            .find(|cause| cause["reason"] == "ExitCode")
            .and_then(|cause| cause["message"].as_str());
        code.and_then(|code| code.parse().ok())
            .with_context(|| end.to_string())
    }
}
