//! containerd's configuration: what its own versions print as their default, trimmed, and what people make of it.

use std::path::Path;

use super::containerd::*;

const FILES: [(&str, &str); 4] = [
    ("1.6", include_str!("testdata/1.6.toml")),
    ("1.7", include_str!("testdata/1.7.toml")),
    ("2.1", include_str!("testdata/2.1.toml")),
    ("2.3", include_str!("testdata/2.3.toml")),
];

const KATA: &str = "version = 2 # by hand

[plugins.\"io.containerd.grpc.v1.cri\"]
  # the registry's pause image
  sandbox_image = \"registry.internal/pause:3.9\"

  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]
    runtime_type = \"io.containerd.kata.v2\"";

fn wanted() -> Wanted {
    Wanted::default()
}

/// The value at this path of keys.
fn at<'a>(table: &'a toml::Table, keys: &[&str]) -> &'a toml::Value {
    let mut value = &table[keys[0]];
    for key in &keys[1..] {
        value = &value[key];
    }
    value
}

fn handler(text: &str) -> toml::Value {
    let table: toml::Table = text.parse().unwrap();
    let plugins = table["plugins"].as_table().unwrap();
    let plugin = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"]
        .into_iter()
        .find(|p| plugins.contains_key(*p))
        .unwrap();
    at(plugins, &[plugin, "containerd", "runtimes", "diffkeeper"]).clone()
}

#[test]
fn default_configurations_of_every_version() {
    for (name, before) in FILES {
        let after = with_handler(before, &wanted()).unwrap().unwrap();
        assert!(after.starts_with(before), "{name}: what was there is not touched");
        let plugin = if name.starts_with('1') {
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.diffkeeper]"
        } else {
            "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.diffkeeper]"
        };
        assert!(after.contains(plugin), "{name}: {after}");
        let handler = handler(&after);
        assert_eq!(
            handler["runtime_type"].as_str(),
            Some("io.containerd.diffkeeper.v1")
        );
        assert_eq!(
            handler["pod_annotations"].as_array().unwrap(),
            &["diffkeeper.io/*".into()]
        );
        assert_eq!(
            handler["container_annotations"].as_array().unwrap(),
            &["io.kubernetes.container.*".into(), "diffkeeper.io/*".into()]
        );
        assert_eq!(handler.get("runtime_path"), None);
        // Nothing else differs for containerd, and the second time nothing at all.
        let (a, b) = (Dump::parse(before).unwrap(), Dump::parse(&after).unwrap());
        assert_eq!(a.lost(&b), None, "{name}");
        assert!(b.has_whole_handler() && !a.has_whole_handler(), "{name}");
        assert_eq!(with_handler(&after, &wanted()).unwrap(), None, "{name}");
        let Without::Text(rest) = without_handler(&after).unwrap() else {
            panic!("{name}")
        };
        assert_eq!(rest.trim_end(), before.trim_end(), "{name}");
    }
}

#[test]
fn comments_order_and_other_handlers_survive() {
    let after = with_handler(KATA, &wanted()).unwrap().unwrap();
    assert!(
        after.starts_with(KATA) && after.contains("install"),
        "a file without a final newline: {after}"
    );
    let with_more = format!("{after}\n# mine\n[plugins.\"x\"]\ny = 1\n");
    let Without::Text(rest) = without_handler(&with_more).unwrap() else {
        panic!()
    };
    for kept in [
        "# by hand",
        "# the registry's pause image",
        "kata",
        "# mine",
        "y = 1",
    ] {
        assert!(rest.contains(kept), "{kept} is gone: {rest}");
    }
    assert!(!rest.contains("diffkeeper"), "{rest}");
}

#[test]
fn a_shim_in_an_unusual_folder_is_named() {
    let wanted = Wanted {
        runtime_path: Some("/opt/diffkeeper/bin/shim".into()),
    };
    let after = with_handler(KATA, &wanted).unwrap().unwrap();
    assert_eq!(
        handler(&after)["runtime_path"].as_str(),
        Some("/opt/diffkeeper/bin/shim")
    );
    assert_eq!(with_handler(&after, &wanted).unwrap(), None);
    assert_ne!(without_handler(&after).unwrap(), Without::Same);
    let error = with_handler(&after, &Wanted::default()).unwrap_err().to_string();
    assert!(
        error.contains("/opt/diffkeeper/bin/shim") && error.contains("--bin-dir"),
        "{error}"
    );
}

#[test]
fn a_handler_that_points_elsewhere_is_refused_with_both() {
    let foreign = KATA.replace("runtimes.kata", "runtimes.diffkeeper");
    let error = with_handler(&foreign, &wanted()).unwrap_err().to_string();
    for word in [
        "io.containerd.kata.v2",
        "io.containerd.diffkeeper.v1",
        "`diffkeeper`",
        "rename",
    ] {
        assert!(error.contains(word), "no {word}: {error}");
    }
    assert_eq!(without_handler(&foreign).unwrap(), Without::Same);
    let with_path = format!("{foreign}\n    runtime_path = \"/opt/kata/shim\"\n");
    assert_eq!(without_handler(&with_path).unwrap(), Without::Same);
}

#[test]
fn a_handler_by_hand_is_completed_and_keeps_its_options() {
    let by_hand = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.diffkeeper]\nruntime_type = 'io.containerd.diffkeeper.v1' # ours\npod_annotations = ['example.com/*']\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.diffkeeper.options]\nBinaryName = 'crun'\n";
    let after = with_handler(by_hand, &wanted()).unwrap().unwrap();
    let handler = handler(&after);
    assert_eq!(
        handler["pod_annotations"].as_array().unwrap(),
        &["example.com/*".into(), "diffkeeper.io/*".into()]
    );
    assert_eq!(handler["options"]["BinaryName"].as_str(), Some("crun"));
    assert!(after.contains("# ours"));
    let wrong = by_hand.replace("['example.com/*']", "'example.com/*'");
    let error = with_handler(&wrong, &wanted()).unwrap_err().to_string();
    assert!(error.contains("pod_annotations"), "{error}");
}

#[test]
fn versions_without_a_place_are_refused_by_name() {
    for (text, words) in [
        (
            "disabled_plugins = [\"cri\"]\n",
            ["version 1", "containerd config migrate"],
        ),
        (
            "version = 1\n[plugins.cri]\n",
            ["version 1", "containerd config migrate"],
        ),
        ("version = 9\n", ["version 9", "2, 3 and 4"]),
        ("version = \"2\"\n", ["version", "not a number"]),
        ("{{ template }}\n", ["not TOML", "template"]),
        (
            "version = 2\nplugins = { \"io.containerd.grpc.v1.cri\" = { containerd = {} } }\n",
            ["braces", "by hand"],
        ),
    ] {
        let error = format!("{:#}", with_handler(text, &wanted()).unwrap_err());
        for word in words {
            assert!(error.contains(word), "{text}: no {word} in {error}");
        }
    }
    assert!(is_blank("# nothing but prose\n") && !is_blank("version = 2\n"));
}

#[test]
fn drop_ins_have_a_name_that_their_pattern_finds() {
    for (pattern, path) in [
        (
            "/etc/containerd/conf.d/*.toml",
            Some("/etc/containerd/conf.d/diffkeeper.toml"),
        ),
        ("/etc/c/runtime_*.toml", Some("/etc/c/runtime_diffkeeper.toml")),
        ("/etc/c/one.toml", None),
        ("/etc/*/one.toml", None),
        ("/etc/c/*-*.toml", None),
        ("/etc/c/[ab]*.toml", None),
    ] {
        let pattern = Path::new(pattern);
        let found = drop_in_path(pattern);
        assert_eq!(found.as_deref(), path.map(Path::new));
        if let Some(found) = found {
            assert!(fits(pattern, found.file_name().unwrap().to_str().unwrap()));
        }
    }
    assert!(!fits(Path::new("/c/*.toml"), "config.toml.before-diffkeeper"));
    let text = drop_in(Version::for_containerd(2), &wanted());
    assert!(text.starts_with("version = 3\n"), "{text}");
    assert_eq!(handler(&text)["runtime_type"].as_str(), Some(RUNTIME_TYPE));
    assert_eq!(without_handler(&text).unwrap(), Without::Empty);
}

#[test]
fn what_a_drop_in_would_lose_is_seen() {
    let before = Dump::parse(KATA).unwrap();
    let replaced = drop_in(Version::for_containerd(1), &wanted());
    let lost = before.lost(&Dump::parse(&replaced).unwrap()).unwrap();
    assert!(lost.starts_with("plugins.io.containerd.grpc.v1.cri"), "{lost}");
    let merged = with_handler(KATA, &wanted()).unwrap().unwrap();
    let merged = Dump::parse(&format!("imports = [\"/etc/x.toml\"]\n{merged}")).unwrap();
    assert_eq!(before.lost(&merged), None);
    let off = Dump::parse("disabled_plugins = [\"io.containerd.grpc.v1.cri\"]").unwrap();
    assert!(off.cri_is_disabled() && !before.cri_is_disabled());
}

#[test]
fn defaults_that_1_x_would_drop_are_written_out() {
    let (_, default) = FILES[1];
    let before = Dump::parse(default).unwrap();
    let file = with_handler("version = 2\n", &wanted()).unwrap().unwrap();
    let missing = before.defaults_missing_in(&file).unwrap().unwrap();
    let file: toml::Table = format!("{file}{missing}").parse().unwrap();
    let keys = [
        "plugins",
        "io.containerd.grpc.v1.cri",
        "containerd",
        "runtimes",
        "runc",
    ];
    let default: toml::Table = default.parse().unwrap();
    assert_eq!(at(&file, &keys), at(&default, &keys));
    // A file that names them needs nothing.
    assert_eq!(before.defaults_missing_in(FILES[1].1).unwrap(), None);
}

#[test]
fn imports_are_replaced_and_nothing_else() {
    assert_eq!(imports(KATA).unwrap(), None);
    let text = with_imports(KATA, &["/a.toml".to_owned()]).unwrap();
    assert_eq!(imports(&text).unwrap().unwrap(), ["/a.toml"]);
    let (a, b) = (Dump::parse(KATA).unwrap(), Dump::parse(&text).unwrap());
    assert_eq!(a.lost(&b), None);
}
