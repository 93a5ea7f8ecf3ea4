//! What people and engines supply: names, annotations, bundles, mounts, configuration.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use runtime_spec::{
    annotations::{Annotations, OnImageChange, WhenMissing},
    bundle::{Bundle, Edits},
    config::{Config, Reclaim},
    duration,
    mount::{self, RootPlan, RootfsMount},
    name::{Engine, Identity, LONGEST_COMPONENT, STATE, StateName, resolve_tail},
};

/// The longest duration there is.
const THOUSAND_YEARS: Duration = Duration::from_secs(1_000 * 365 * 86_400);

/// A name is safe to make directories of, and what is supplied for one part stays in that part.
pub fn state_name(data: &[u8]) {
    let Some(text) = crate::text(data) else { return };
    if let Ok(name) = text.parse::<StateName>() {
        assert_eq!(name.to_string(), text);
        check_name(&name);
    }
    for (namespace, parts) in [("default", 3), ("k8s.io", 4)] {
        let pod = [
            ("io.kubernetes.cri.container-type", "container"),
            ("io.kubernetes.cri.sandbox-namespace", "shop"),
            ("io.kubernetes.cri.sandbox-name", "pod"),
            ("io.kubernetes.cri.container-name", "main"),
            (STATE, text),
        ];
        let bundle = with_annotations(pod);
        match Identity::of(&bundle, namespace, "c1", &Config::default(), None) {
            Ok(Identity::State { name, chosen }) => {
                check_name(&name);
                assert!(chosen);
                assert_eq!(name.components().count(), parts);
                assert_eq!(name.components().nth(2), Some(text));
                let prefix = if parts == 3 { "ctr/default" } else { "k8s/shop" };
                assert!(
                    name.as_path().starts_with(prefix),
                    "{name} has left its namespace"
                );
                assert!(parts == 3 || name.leaf() == "main");
            }
            Ok(Identity::PassThrough(_)) => assert_eq!(text, "none"),
            Err(error) => printable(&error.to_string()),
        }
        // Where it is the container's id it is checked the same; its namespace too.
        for (namespace, id) in [("default", text), (text, "c1")] {
            if let Ok(Identity::State { name, chosen }) =
                Identity::of(&Bundle::default(), namespace, id, &Config::default(), None)
            {
                check_name(&name);
                assert!(!chosen);
                assert_eq!(name.to_string(), format!("ctr/{namespace}/{id}"));
            }
        }
    }
}

fn check_name(name: &StateName) {
    let path = name.as_path();
    assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
    assert_eq!(path.components().count(), name.components().count());
    let count = match name.engine() {
        Engine::Kubernetes => 4,
        Engine::Docker => 2,
        Engine::Containerd => 3,
    };
    assert_eq!(name.components().count(), count);
    assert!(
        name.components()
            .all(|c| (1..=LONGEST_COMPONENT).contains(&c.len()))
    );
    assert_eq!(name.to_string().parse::<StateName>().as_ref(), Ok(name));
    assert_eq!(resolve_tail([name], name.leaf()), Ok(name));
    assert_eq!(resolve_tail([name], &name.to_string()), Ok(name));
    assert!(!name.matches_tail(""));
}

/// `key=value` on each line: refused in words, or the same again when printed and parsed once more.
pub fn annotations(data: &[u8]) {
    let Some(text) = crate::text(data) else { return };
    let all: BTreeMap<String, String> = text
        .lines()
        .map(|line| line.split_once('=').unwrap_or((line, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let parsed = match Annotations::parse(&all) {
        Ok(parsed) => parsed,
        Err(error) => {
            let error = error.to_string();
            printable(&error);
            assert!(all.keys().any(|key| key.starts_with("diffkeeper.io/")));
            return assert!(error.contains("diffkeeper.io/"), "{error}");
        }
    };
    let mut printed = BTreeMap::new();
    let mut put = |key: &str, value: String| drop(printed.insert(format!("diffkeeper.io/{key}"), value));
    for (key, list) in [("paths", &parsed.paths), ("exclude", &parsed.exclude)] {
        match list {
            Some(list) if list.is_empty() => put(key, if key == "paths" { "all" } else { "none" }.to_owned()),
            Some(list) => put(key, print_paths(list)),
            None => {}
        }
    }
    if !parsed.include_mounts.is_empty() {
        put("include-mounts", print_paths(&parsed.include_mounts));
    }
    match parsed.on_image_change {
        Some(OnImageChange::Keep) => put("on-image-change", "keep".to_owned()),
        Some(OnImageChange::Fresh) => put("on-image-change", "fresh".to_owned()),
        Some(OnImageChange::Refuse) => put("on-image-change", "refuse".to_owned()),
        None => {}
    }
    if let Some(crashes) = parsed.after_crashes {
        put("after-crashes", crashes.to_string());
    }
    if let Some(limit) = parsed.size_limit {
        put("size-limit", limit.to_string());
    }
    for (key, command) in [
        ("pre-commit", &parsed.pre_commit),
        ("post-commit", &parsed.post_commit),
    ] {
        if let Some(program) = command.first() {
            assert!(!program.is_empty() && !command.iter().any(|word| word.contains('\0')));
            put(key, serde_json::to_string(command).expect("words"));
        }
    }
    if let Some(reclaim) = parsed.reclaim {
        put("reclaim", print_reclaim(reclaim));
    }
    if let Some(wait) = parsed.lease_wait {
        put("lease-wait", print_duration(wait));
    }
    if parsed.when_missing == WhenMissing::Refuse {
        put("when-missing", "refuse".to_owned());
    }
    match parsed.capture {
        Some(Duration::ZERO) => put("capture", "off".to_owned()),
        Some(interval) => put("capture", print_duration(interval)),
        None => {}
    }
    if let Some(version) = &parsed.restore {
        assert!(
            !version.starts_with(['~', '-']) && version != "head",
            "it must stay the same"
        );
        put("restore", version.clone());
    }
    if let Some(from) = &parsed.from {
        put("from", format!("{}@{}", from.state, from.version));
    }
    assert_eq!(Annotations::parse(&printed), Ok(parsed));

    // Whatever the annotations are, a name that comes of them is safe.
    let bundle = Bundle {
        annotations: all,
        ..Bundle::default()
    };
    for namespace in ["default", "k8s.io"] {
        match Identity::of(&bundle, namespace, "c1", &Config::default(), None) {
            Ok(Identity::State { name, .. }) => check_name(&name),
            Ok(Identity::PassThrough(_)) => {}
            Err(error) => printable(&error.to_string()),
        }
    }
}

fn moved_root() -> Edits {
    Edits {
        root_path: Some("/moved".into()),
        ..Edits::default()
    }
}

/// A bundle parses or not; with another root path it is the same but for that path.
pub fn bundle(data: &[u8]) {
    let parsed = Bundle::parse(data);
    if let Ok(bundle) = &parsed {
        let places = mount::targets(bundle);
        assert!(places.len() <= bundle.mounts.len());
        for (n, place) in places.iter().enumerate() {
            assert_ne!(place.destination, Path::new("/"));
            let before = places.iter().take(n);
            assert!(
                !before
                    .into_iter()
                    .any(|p| place.destination.starts_with(&p.destination)),
                "{place:?} is on another mount"
            );
        }
        let config = Config {
            allow_env_state: true,
            ..Config::default()
        };
        for namespace in ["default", "k8s.io", "moby"] {
            if let Ok(Identity::State { name, .. }) = Identity::of(bundle, namespace, "c1", &config, None) {
                check_name(&name);
            }
        }
    }
    let Ok(edited) = Bundle::edit(data, &moved_root()) else {
        return;
    };
    let value = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).ok();
    // None with a number beyond a double, which the edit need not understand.
    if let (Some(mut before), after) = (value(data), value(&edited)) {
        match before.get_mut("root").and_then(|root| root.as_object_mut()) {
            Some(root) => drop(root.insert("path".into(), "/moved".into())),
            None => before["root"] = serde_json::json!({ "path": "/moved" }),
        }
        assert_eq!(Some(before), after);
    }
    // serde takes a list for a struct, which no runtime does.
    if let Ok(parsed) = parsed
        && value(data).is_some_and(|all| all.get("root").is_none_or(|root| !root.is_array()))
    {
        let mut moved = Bundle::parse(&edited).expect("what was edited parses");
        assert_eq!(moved.root.path, Path::new("/moved"));
        moved.root.path.clone_from(&parsed.root.path);
        assert_eq!(moved, parsed);
    }
}

/// Each line is an option of an overlay. What is planned is ours alone, and every directory comes back out of its
/// escaped form.
pub fn mount(data: &[u8]) {
    let Some(text) = crate::text(data) else { return };
    let root = |options: Vec<String>| RootfsMount {
        kind: "overlay".into(),
        source: "overlay".into(),
        options,
        ..RootfsMount::default()
    };
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    match RootPlan::new(&[root(lines.clone())], Path::new("/own")) {
        Ok(plan) => {
            assert!(!text.contains("{{"), "a template was planned");
            assert!(!plan.lower.is_empty());
            assert!(plan.lower.iter().all(|dir| !dir.as_os_str().is_empty()));
            let ours = ["index=off", "metacopy=off", "redirect_dir=nofollow", "xino=off"];
            assert_eq!(plan.options.iter().take(4).collect::<Vec<_>>(), ours);
            for option in plan.options.iter().skip(4) {
                let key = option.split('=').next().unwrap_or_default();
                let taken = [
                    "index",
                    "metacopy",
                    "redirect_dir",
                    "xino",
                    "volatile",
                    "upperdir",
                    "lowerdir",
                    "workdir",
                    "ro",
                    "rw",
                    "uidmap",
                    "gidmap",
                ];
                assert!(!taken.contains(&key), "{option}");
                assert!(lines.contains(option));
            }
        }
        Err(error) => printable(&error.to_string()),
    }

    let escape = |dir: &str| dir.replace('\\', "\\\\").replace(':', "\\:");
    let dirs: Vec<&str> = text
        .lines()
        .filter(|l| !l.is_empty() && !l.contains("{{"))
        .collect();
    let Some(first) = dirs.first() else { return };
    let lower = dirs.iter().map(|dir| escape(dir)).collect::<Vec<_>>().join(":");
    let options = vec![format!("lowerdir={lower}"), format!("upperdir={}", escape(first))];
    let plan = RootPlan::new(&[root(options)], Path::new("/own"));
    // Two braces may have come together only by the joining.
    if !lower.contains("{{") {
        let plan = plan.expect("plain directories are planned");
        assert_eq!(plan.lower, dirs.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(plan.engine_upper, Some(PathBuf::from(first)));
    }
}

/// A configuration is refused with a line that exists, or the same again when printed and parsed once more.
pub fn config(data: &[u8]) {
    let Some(text) = crate::text(data) else { return };
    let config = match Config::parse(text) {
        Ok(config) => config,
        Err(error) => {
            let error = error.to_string();
            let number = error.split("line ").nth(1).and_then(|rest| {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse::<usize>().ok()
            });
            let number = number.unwrap_or_else(|| panic!("no line in {error:?}"));
            return assert!((1..=text.split('\n').count()).contains(&number), "{error}");
        }
    };
    plain(&config.root);
    config.exclude.iter().for_each(|path| plain(path));
    let quoted = |text: &str| serde_json::to_string(text).unwrap().replace('\u{7f}', "\\u007f");
    let list = |all: Vec<&str>| all.into_iter().map(quoted).collect::<Vec<_>>().join(", ");
    let paths = config.exclude.iter().filter_map(|p| p.to_str()).collect();
    let names = config.cri_namespaces.iter().map(String::as_str).collect();
    let mut printed = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        printed,
        "root = {}\nallow-env-state = {}\nexclude = [{}]\nlease-wait = {}\nlease-wait-cri = {}\ncri-namespaces = [{}]\nkeeper = {}\n[reclaim]\nunchosen = {}\nchosen = {}\n[history]\ninterval = {}\nmax-pause = {}\nshare = {}\nhash = {}\nmetrics = {}\n",
        quoted(config.root.to_str().unwrap_or_default()),
        config.allow_env_state,
        list(paths),
        quoted(&print_duration(config.lease_wait)),
        quoted(&print_duration(config.lease_wait_cri)),
        list(names),
        quoted(config.keeper.to_str().unwrap_or_default()),
        quoted(&print_reclaim(config.reclaim_unchosen)),
        quoted(&print_reclaim(config.reclaim_chosen)),
        quoted(&print_duration(config.history.interval)),
        quoted(&print_duration(config.history.max_pause)),
        quoted(if config.history.share { "node" } else { "namespace" }),
        quoted(if config.history.sha256 { "sha256" } else { "blake3" }),
        quoted(
            &config
                .history
                .metrics
                .map_or("off".to_owned(), |address| address.to_string())
        ),
    );
    assert_eq!(Config::parse(&printed), Ok(config), "{printed}");
}

/// A duration is within bounds, the same again when printed, and adds up with another.
pub fn duration(data: &[u8]) {
    let Some(text) = crate::text(data) else { return };
    let Some(parsed) = duration::parse(text) else {
        return;
    };
    assert!(parsed <= THOUSAND_YEARS);
    assert_eq!(duration::parse(&print_duration(parsed)), Some(parsed));
    let sum = Some(parsed + Duration::from_secs(60)).filter(|sum| *sum <= THOUSAND_YEARS);
    assert_eq!(duration::parse(&format!("{}1m", text.trim())), sum);
    assert!(
        text.trim()
            .bytes()
            .all(|b| b.is_ascii_digit() || b"dhms".contains(&b))
    );
}

fn print_duration(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

fn print_paths(list: &[PathBuf]) -> String {
    list.iter().for_each(|path| plain(path));
    let list: Vec<&str> = list.iter().filter_map(|path| path.to_str()).collect();
    list.join(",")
}

fn print_reclaim(reclaim: Reclaim) -> String {
    match reclaim {
        Reclaim::Keep => "keep".into(),
        Reclaim::Delete => "delete".into(),
        Reclaim::After(time) => print_duration(time),
    }
}

fn with_annotations<const N: usize>(all: [(&str, &str); N]) -> Bundle {
    Bundle {
        annotations: all
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect(),
        ..Bundle::default()
    }
}

/// Absolute, and nothing in it but names.
fn plain(path: &Path) {
    let mut parts = path.components();
    assert_eq!(parts.next(), Some(Component::RootDir), "{}", path.display());
    assert!(parts.clone().count() > 0);
    assert!(parts.all(|c| matches!(c, Component::Normal(_))));
    // As written, not only as read: a prefix of it is looked for in other paths.
    let written: PathBuf = path.components().collect();
    assert_eq!(path.as_os_str(), written.as_os_str());
}

/// A message goes to logs and terminals: what others supplied cannot write lines or colours of its own there.
fn printable(message: &str) {
    assert!(!message.chars().any(char::is_control), "{message:?}");
}
