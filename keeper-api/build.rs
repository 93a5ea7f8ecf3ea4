//! Generates the messages and services of `proto/`; no protoc is needed.

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    for name in ["shim", "keeper"] {
        let dir = out.join(name);
        std::fs::create_dir_all(&dir)?;
        Codegen::new()
            .inputs([format!("proto/{name}.proto")])
            .include("proto")
            .rust_protobuf()
            .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true))
            .customize(Customize {
                async_all: true,
                ..Default::default()
            })
            .out_dir(&dir)
            .run()?;
        // The generator lists the messages only.
        let list = dir.join("mod.rs");
        let text = std::fs::read_to_string(&list)? + &format!("pub mod {name}_ttrpc;\n");
        std::fs::write(&list, text)?;
    }
    Ok(())
}
