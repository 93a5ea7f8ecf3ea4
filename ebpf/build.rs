//! Compiles the programs with clang. Without one the crate is built without them, and says so.

use std::{env, path::PathBuf, process::Command};

#[path = "src/compile.rs"]
mod compile;

fn main() {
    println!("cargo::rerun-if-changed=src/{}", compile::SOURCE);
    println!("cargo::rerun-if-changed=src/compile.rs");
    println!("cargo::rerun-if-env-changed=CLANG");
    println!("cargo::rustc-check-cfg=cfg(programs)");
    let clang = env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else {
        println!("cargo::error=OUT_DIR is not set: this is run by cargo");
        return;
    };
    let Ok(version) = Command::new(&clang).arg("--version").output() else {
        println!("cargo::warning=there is no clang: the keeper is built without its eBPF programs");
        return;
    };
    if !compile::targets(&clang) {
        println!(
            "cargo::warning=this clang has no target bpf: the keeper is built without its eBPF programs"
        );
        return;
    }
    match compile::compile(&clang, "src".as_ref(), &out.join("written.o")) {
        Ok(()) => println!("cargo::rustc-cfg=programs"),
        Err(why) => println!(
            "cargo::error=the eBPF programs cannot be built with {}: {why}",
            String::from_utf8_lossy(&version.stdout)
                .lines()
                .next()
                .unwrap_or_default()
        ),
    }
}
