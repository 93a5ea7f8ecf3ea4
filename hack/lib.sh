# Helpers that the scripts of hack/ share. Sourced, never run.
# shellcheck shell=bash

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# What is downloaded or built for tests is kept here; never below CARGO_TARGET_DIR, which may change
# from one run to the next.
CACHE=$REPO/target
# Where the built binaries are. `make build` copies them here whatever target triple it builds for.
# shellcheck disable=SC2034 # used by the scripts that source this
RELEASE=${CARGO_TARGET_DIR:-$REPO/target}/release

# "Cannot be had on this machine": what tests report as skipped, with the reason printed here.
readonly EXIT_SKIP=75

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
skip() { say "skip: $*"; exit "$EXIT_SKIP"; }

need_root() { [ "$(id -u)" -eq 0 ] || die "$1 needs root: mounts, namespaces and cgroups are root's. Run it with sudo."; }

# with_lock FILE COMMAND...: one at a time, so that parallel runs do not download the same thing twice.
with_lock() {
    local lock=$1
    shift
    mkdir -p "$(dirname "$lock")"
    (
        flock 9
        # The lock ends with this subshell; what it starts must not carry it on.
        "$@" 9>&-
    ) 9>"$lock"
}

# The mirror that this machine's own sources name, so that a proxy or a local mirror is respected.
debian_mirror() {
    local uri
    uri=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        grep -Eo '^(deb |URIs:).*https?://[^ ]*/debian/?( |$)' | grep -Eo 'https?://[^ ]*' | head -n 1) || true
    printf '%s\n' "${uri:-http://deb.debian.org/debian}"
}

# apt_suite SUITE TOOL ARGS...: apt-get or apt-cache on an index of one Debian suite that is private to
# target/: it neither sees nor changes what the machine has installed.
apt_suite() {
    local suite=$1 tool=$2 dir=$CACHE/apt/$1
    shift 2
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/etc"
    [ -e "$dir/status" ] || : >"$dir/status"
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' \
        "$(debian_mirror)" "$suite" >"$dir/etc/sources.list"
    "$tool" -q \
        -o Dir::Etc::SourceList="$dir/etc/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
        -o Dir::State="$dir" -o Dir::State::Lists="$dir/lists" -o Dir::State::status="$dir/status" \
        -o Dir::Cache="$dir/cache" -o APT::Sandbox::User=root -o APT::Update::Post-Invoke-Success= \
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
        -o Acquire::Retries=3 "$@"
}

# Downloads the suite's index unless one of today is there.
apt_index() {
    local suite=$1 stamp=$CACHE/apt/$1/updated
    [ -z "$(find "$stamp" -mtime -1 2>/dev/null)" ] || return 0
    mkdir -p "$CACHE/apt"
    # apt-get update succeeds with a warning where it could not download.
    if apt_suite "$suite" apt-get update >"$CACHE/apt/$suite.out" 2>&1 &&
        ! grep -q '^[WE]: Failed to fetch' "$CACHE/apt/$suite.out"; then
        touch "$stamp"
    else
        tail -n 3 "$CACHE/apt/$suite.out" >&2
        return 1
    fi
}

# unpack SUITE INTO PACKAGE...: downloads packages of a suite and unpacks them; installs nothing.
unpack() {
    local suite=$1 into=$2 debs=$CACHE/apt/$1/debs versions package version
    shift 2
    apt_index "$suite" || return 1
    mkdir -p "$debs" "$into"
    versions=$(apt_suite "$suite" apt-cache show --no-all-versions "$@" |
        awk '/^Package: / { name = $2 } /^Version: / { print name, $2 }') || return 1
    local missing=() files=()
    for package; do
        version=$(awk -v name="$package" '$1 == name && !seen++ { print $2 }' <<<"$versions")
        [ -n "$version" ] || { say "Debian $suite has no package $package"; return 1; }
        # apt writes an epoch's colon as %3a.
        files+=("$debs/${package}_${version//:/%3a}")
        compgen -G "${files[-1]}_*.deb" >/dev/null || missing+=("$package=$version")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        (cd "$debs" && apt_suite "$suite" apt-get -qq download "${missing[@]}") >&2 || return 1
    fi
    local file
    for file in "${files[@]}"; do
        dpkg -x "$(compgen -G "${file}_*.deb" | head -n 1)" "$into" || return 1
    done
}

# libraries SUITE PACKAGE...: the shared libraries (and time zones) that packages depend on.
libraries() {
    local suite=$1
    shift
    apt_index "$suite" || return 1
    apt_suite "$suite" apt-get -s --no-install-recommends install "$@" |
        awk '$1 == "Inst" && $2 ~ /^(lib|zlib|tzdata)/ { print $2 }'
}

# relink SUITE TMP INTO BINARY PACKAGE...: what comes from a newer suite needs that suite's libraries. runc executes
# itself again (/proc/self/exe), so starting it through ld.so will not do: the path of the loader is written into
# the binary. TMP/bin and TMP/lib will be INTO/bin and INTO/lib.
relink() {
    local suite=$1 tmp=$2 into=$3 binary=$4
    shift 4
    unpack "$suite" "$tmp/root" "$@" && unpack bookworm "$tmp/tools" patchelf || return 1
    mkdir -p "$tmp/lib"
    find "$tmp/root" -path '*-linux-gnu/*' -name '*.so*' -not -path '*-linux-gnu/*/*' -exec cp -L {} "$tmp/lib/" \; || return 1
    "$tmp/tools/usr/bin/patchelf" --set-interpreter "$into/lib/ld-linux-x86-64.so.2" \
        --force-rpath --set-rpath "$into/lib" "$tmp/bin/$binary"
}

# mounts_below DIR: mount points in DIR, deepest last mounted first.
mounts_below() {
    awk -v dir="$1/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac
}

unmount_below() {
    local point
    while read -r point; do
        umount -l "$(printf '%b' "$point")" || true
    done < <(mounts_below "$1")
}

# with_postgresql SCRIPT [LEVEL]: a private containerd that has PostgreSQL's image, `reference`, and a keeper, which logs to
# `$work/keeper.log` at that level. All of it is gone when the script ends.
with_postgresql() {
    need_root "hack/$1"
    [ -x "$RELEASE/diffkeeper" ] || die "nothing is built yet: make build"
    work=$(mktemp -d "/tmp/dk-$1.XXXX")
    export DIFFKEEPER_DEV=$work/d
    trap without_postgresql EXIT
    local name=$1$$ archive
    hack/dev-containerd up --name "$name" >&2
    eval "$(hack/dev-containerd env --name "$name")"
    export CONTAINERD_NAMESPACE=default PATH="$RELEASE:$PATH"
    # shellcheck disable=SC2034 # used by the scripts that source this
    read -r archive reference <<<"$(hack/images/build postgresql)"
    ctr images import "$archive" >/dev/null
    env ${2:+"DIFFKEEPER_LOG=$2"} diffkeeper keeper >"$work/keeper.log" 2>&1 </dev/null &
    keeper=$!
}

without_postgresql() {
    local status=$?
    [ -z "${keeper:-}" ] || kill "$keeper" 2>/dev/null || true
    [ ! -e "$DIFFKEEPER_DEV" ] || hack/dev-containerd down --all >&2
    rm -rf --one-file-system "$work"
    exit "$status"
}
