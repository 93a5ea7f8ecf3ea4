//! Where a member of one of the kernel's types is: its modules' types too, which are written as a continuation of the
//! kernel's own (Documentation/bpf/btf.rst).

use std::{fs, path::Path};

const STRUCT: u32 = 4;

/// The parts of it that names are in, and types.
struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

impl Btf {
    fn read(bytes: &[u8]) -> Option<Btf> {
        if word(bytes, 0)? & 0xffff != 0xeb9f {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let part = |at: usize| {
            let begin = header.checked_add(word(bytes, at)? as usize)?;
            bytes.get(begin..begin.checked_add(word(bytes, at + 4)? as usize)?)
        };
        Some(Btf {
            types: part(8)?.to_vec(),
            strings: part(16)?.to_vec(),
        })
    }

    /// A name; the first ones are of those before.
    fn name(&self, before: usize, at: u32) -> Option<&[u8]> {
        let rest = self.strings.get((at as usize).checked_sub(before)?..)?;
        rest.split(|b| *b == 0).next()
    }

    /// Where a member of a struct is, in bytes.
    fn member(&self, before: usize, of: &str, member: &str) -> Option<u32> {
        let mut at = 0;
        loop {
            let (name, info) = (word(&self.types, at)?, word(&self.types, at + 4)?);
            let (kind, many, flags) = (info >> 24 & 0x1f, (info & 0xffff) as usize, info >> 31);
            at += 12;
            let size = match kind {
                // Integer, variable, tag.
                1 | 14 | 17 => 4,
                // Array.
                3 => 12,
                // Struct, union, data section, enumeration of 64 bits.
                STRUCT | 5 | 15 | 19 => 12 * many,
                // Enumeration, function's type.
                6 | 13 => 8 * many,
                _ => 0,
            };
            if kind == STRUCT && self.name(before, name) == Some(of.as_bytes()) {
                let mut members = (0..many).map(|n| at + 12 * n);
                let found = members.find(|at| {
                    let name = word(&self.types, *at).and_then(|name| self.name(before, name));
                    name == Some(member.as_bytes())
                });
                if let Some(found) = found {
                    let bits = word(&self.types, found + 8)?;
                    return Some(if flags == 1 { bits & 0xff_ffff } else { bits } / 8);
                }
            }
            at += size;
        }
    }
}

/// Where a member of a struct is, of a module if it is one, else of the kernel.
pub fn member(dir: &Path, module: &str, of: &str, member: &str) -> Option<u32> {
    let kernel = Btf::read(&fs::read(dir.join("vmlinux")).ok()?)?;
    let module = fs::read(dir.join(module))
        .ok()
        .and_then(|bytes| Btf::read(&bytes));
    module
        .and_then(|module| module.member(kernel.strings.len(), of, member))
        .or_else(|| kernel.member(0, of, member))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types with one struct of two members, and its names behind `before`.
    fn btf(before: u32) -> Vec<u8> {
        let names = b"\0of\0first\0second\0";
        let at = |n: u32| n + before;
        let types = [
            // An integer, which is skipped.
            [at(1), 1 << 24, 4, 32].as_slice(),
            &[at(1), STRUCT << 24 | 2, 16],
            &[at(4), 1, 0],
            &[at(10), 1, 64],
        ]
        .concat();
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (types_len, names_len) = (types.len() as u32, names.len() as u32);
        let header = [0x1_eb9f, 24, 0, types_len, types_len, names_len];
        let mut all: Vec<u8> = header.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        all.extend(types);
        all.extend(names);
        all
    }

    #[test]
    fn a_member_is_found_in_a_module_or_in_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: Vec<u8>| fs::write(dir.path().join(name), bytes).unwrap();
        assert_eq!(member(dir.path(), "xfs", "of", "second"), None);
        write("vmlinux", btf(0));
        assert_eq!(member(dir.path(), "xfs", "of", "second"), Some(8));
        assert_eq!(member(dir.path(), "xfs", "of", "third"), None);
        let length = Btf::read(&btf(0)).unwrap().strings.len();
        write("xfs", btf(u32::try_from(length).unwrap()));
        assert_eq!(member(dir.path(), "xfs", "of", "second"), Some(8));
        for end in 0..btf(0).len() {
            write("vmlinux", btf(0)[..end].to_vec());
            let _ = member(dir.path(), "none", "of", "second");
        }
    }
}
