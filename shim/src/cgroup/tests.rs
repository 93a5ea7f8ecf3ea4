mod freezer;
mod real;
mod v1;
mod v2;

use protobuf::Message;
use tempfile::TempDir;

use super::*;

/// A tree of files that stands for a host.
struct Tree {
    dir: TempDir,
}

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        let tree = Tree {
            dir: TempDir::new().unwrap(),
        };
        fs::create_dir_all(tree.path("cgroup")).unwrap();
        files.iter().for_each(|(name, text)| tree.write(name, text));
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn host(&self) -> Host {
        Host {
            cgroup: self.path("cgroup").into(),
            proc: self.path("proc").into(),
            hugepages: self.path("hugepages").into(),
        }
    }
}

/// Field numbers and values of a message whose fields are all numbers.
fn numbers(message: &impl Message) -> Vec<(u32, u64)> {
    let mut bytes = message.write_to_bytes().unwrap();
    let mut input = protobuf::CodedInputStream::from_bytes(&bytes);
    let mut found = Vec::new();
    while let Some(tag) = input.read_raw_tag_or_eof().unwrap() {
        match tag & 7 {
            0 => found.push((tag >> 3, input.read_uint64().unwrap())),
            2 => drop(input.read_bytes().unwrap()),
            other => panic!("wire type {other}"),
        }
    }
    drop(input);
    bytes.clear();
    found
}
