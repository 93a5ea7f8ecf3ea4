//! Kinds of content: what one dictionary, and one record of what encodings gave, may stand for.

use crate::pages::page_size;

/// A kind of content. The numbers may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// Whatever is none of the others.
    Other = 0,
    /// Text of no other kind.
    Text = 1,
    /// JSON, in one document or one a line.
    Json = 2,
    /// Lines that begin with a time.
    Log = 3,
    /// Source code and markup.
    Source = 4,
    /// Pages of databases.
    Pages = 5,
    /// Programs and libraries.
    Program = 6,
}

impl Class {
    /// All of them, by number.
    pub const ALL: [Class; 7] = [
        Class::Other,
        Class::Text,
        Class::Json,
        Class::Log,
        Class::Source,
        Class::Pages,
        Class::Program,
    ];
}

/// So much of a content is looked at.
const HEAD: usize = 128 << 10;
const TEXT: usize = 2048;

const SOURCES: [&str; 32] = [
    "bash", "c", "cc", "cfg", "conf", "cpp", "css", "go", "h", "hpp", "htm", "html", "ini", "java", "js",
    "jsx", "lua", "php", "pl", "pm", "py", "rb", "rs", "sh", "sql", "svg", "toml", "ts", "tsx", "xml",
    "yaml", "yml",
];

/// What kind a content is, by how it begins and by the last part of its file's name, which may be empty. Where they
/// disagree the bytes are right.
#[must_use]
pub fn class(head: &[u8], name: &[u8]) -> Class {
    let head = head.get(..HEAD).unwrap_or(head);
    if page_size(head).is_some() {
        return Class::Pages;
    }
    if head.starts_with(b"\x7fELF") || head.starts_with(b"!<arch>\n") {
        return Class::Program;
    }
    let text = head.get(..TEXT).unwrap_or(head);
    if !is_text(text) {
        return Class::Other;
    }
    let extension = name.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
    let extension = extension.to_ascii_lowercase();
    let begin = text.trim_ascii_start();
    if is_json(begin) {
        Class::Json
    } else if extension == b"log" || is_log(text) {
        Class::Log
    } else if begin.starts_with(b"#!")
        || begin.starts_with(b"<")
        || SOURCES.iter().any(|source| source.as_bytes() == extension)
    {
        Class::Source
    } else {
        Class::Text
    }
}

/// Without what no text has, and with little that is not ASCII.
fn is_text(head: &[u8]) -> bool {
    let control = |byte: &u8| *byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r' | b'\x0c' | b'\x1b');
    let high = head.iter().filter(|byte| **byte >= 0x80).count();
    !head.is_empty()
        && !head.iter().any(control)
        && (high * 4 < head.len() || std::str::from_utf8(head).is_ok())
}

/// Its first bracket is followed by what may stand there, and it has names with values.
fn is_json(begin: &[u8]) -> bool {
    let Some((first, rest)) = begin.split_first() else {
        return false;
    };
    let next = rest.trim_ascii_start().first();
    let object = *first == b'{' && matches!(next, Some(b'"' | b'}'));
    let array = *first == b'[' && matches!(next, Some(b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b']'));
    object || (array && begin.windows(2).any(|two| two == b"\":" || two == b"},"))
}

/// Most lines begin with a date, a time or a number of seconds, after a bracket or not.
fn is_log(text: &[u8]) -> bool {
    let (mut all, mut timed) = (0, 0);
    for line in text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .take(16)
    {
        all += 1;
        let line = line.strip_prefix(b"[").unwrap_or(line).trim_ascii_start();
        let head = line.get(..16).unwrap_or(line);
        let digits = head.iter().filter(|byte| byte.is_ascii_digit()).count();
        let marks = head
            .iter()
            .filter(|byte| matches!(byte, b':' | b'-' | b'/' | b'.'))
            .count();
        timed += usize::from(digits >= 4 && marks >= 2);
    }
    all >= 4 && timed * 4 >= all * 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    #[test]
    fn kinds_are_told() {
        let logs = b"2026-11-21T10:00:01Z INFO started\n2026-11-21T10:00:02Z WARN slow\n".repeat(4);
        let kernel = b"[   12.345678] eth0: link is up\n[   12.345999] eth0: 1 Gbit/s\n".repeat(4);
        let apache = b"Nov 21 10:53:09 host kernel: x\n".repeat(4);
        for (head, name, class_of) in [
            (&b""[..], "", Class::Other),
            (b"\x00\x01\x02", "x.json", Class::Other),
            (b"{\"a\": 1, \"b\": [2]}", "", Class::Json),
            (b"  [ {\"a\": 1},\n{\"a\": 2} ]", "", Class::Json),
            (
                b"{\"level\":\"info\"}\n{\"level\":\"warn\"}\n",
                "a.log",
                Class::Json,
            ),
            (b"[section]\nkey = 1\n", "a.ini", Class::Source),
            (b"{ return 1; }", "a.c", Class::Source),
            (&logs, "", Class::Log),
            (&kernel, "dmesg", Class::Log),
            (&apache, "syslog", Class::Log),
            (b"whatever it says", "a.log", Class::Log),
            (b"#!/bin/sh\necho\n", "run", Class::Source),
            (b"<!doctype html>", "", Class::Source),
            (b"fn main() {}\n", "main.rs", Class::Source),
            (b"Once upon a time there was a chunk.\n", "a.txt", Class::Text),
            ("Übergrößen und Äpfel".as_bytes(), "", Class::Text),
            (b"\x7fELF\x02\x01\x01", "a.txt", Class::Program),
            (b"SQLite format 3\0\x10\x00", "", Class::Pages),
        ] {
            assert_eq!(
                class(head, name.as_bytes()),
                class_of,
                "{:?} {name}",
                String::from_utf8_lossy(head)
            );
        }
        assert_eq!(class(&noise(1000, 1), b"a.rs"), Class::Other);
        for (number, class) in (0u8..).zip(Class::ALL) {
            assert_eq!(class as u8, number);
        }
    }
}
