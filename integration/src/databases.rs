//! Databases that are killed while they write. A row counts as acknowledged when the database's client has printed its
//! number to a file of the node's, which outlives the container.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::wait::until;

/// A database in an image of `hack/images`, and what is said to it by scripts of its container's shell.
pub struct Database {
    /// The image. Where it is called so it declares the database's directory as a `VOLUME`.
    pub image: &'static str,
    /// Succeeds when it answers.
    pub ready: &'static str,
    /// Makes an empty table.
    pub begin: &'static str,
    /// What turns numbers on standard input into rows, one transaction each, and prints each number when it is
    /// acknowledged.
    pub write: &'static str,
    /// Prints how many rows there are; fails unless these are 1, 2, 3 and so on.
    pub count: &'static str,
    /// Fails, or prints what is wrong, unless all is well with the files.
    pub check: &'static str,
}

/// MariaDB, with InnoDB.
pub const MARIADB: Database = Database {
    image: "mariadb-volume",
    ready: "mariadb -S /run/mysqld/mysqld.sock -e 'select 1'",
    begin: "mariadb -S /run/mysqld/mysqld.sock -e 'create database if not exists t; \
            create or replace table t.acknowledged (n int primary key) engine=innodb'",
    write: "sed 's/.*/insert into acknowledged values (&); select &;/' | mariadb -S /run/mysqld/mysqld.sock -nNB t",
    count: "set -- $(mariadb -S /run/mysqld/mysqld.sock -NBe \
            'select count(*), coalesce(min(n), 1), coalesce(max(n), 0) from t.acknowledged'); \
            test \"$2 $3\" = \"1 $1\" && echo $1",
    check: "mariadb-check -S /run/mysqld/mysqld.sock --extended --all-databases > /tmp/checked && \
            grep -q '^t.acknowledged  *OK$' /tmp/checked && ! grep -v ' OK$' /tmp/checked",
};

/// Redis, with an append-only file that is synced for each command.
pub const REDIS: Database = Database {
    image: "redis-volume",
    ready: "redis-cli -s /run/redis/redis.sock ping | grep -q PONG",
    begin: "redis-cli -s /run/redis/redis.sock config get appendfsync | grep -q always && \
            redis-cli -s /run/redis/redis.sock del acknowledged",
    // The answer is the list's new length.
    write: "sed 's/^/rpush acknowledged /' | redis-cli -s /run/redis/redis.sock",
    count: "redis-cli -s /run/redis/redis.sock lrange acknowledged 0 -1 > /tmp/rows && \
            awk '$1 != \"\" && $1 != NR { wrong = 1 } $1 != \"\" { n++ } END { print n + 0; exit wrong }' /tmp/rows",
    check: "redis-check-aof /var/lib/redis/appendonlydir/appendonly.aof.manifest > /tmp/checked || cat /tmp/checked",
};

/// Redis, with an append-only file that is synced each second.
pub const REDIS_EVERYSEC: Database = Database {
    begin: "redis-cli -s /run/redis/redis.sock config set appendfsync everysec && \
            redis-cli -s /run/redis/redis.sock del acknowledged",
    ..REDIS
};

/// PostgreSQL as it comes, with checksums of its pages.
pub const POSTGRESQL: Database = Database {
    image: "postgresql",
    ready: "psql -h /run/postgresql -U postgres -qAtc 'select 1'",
    begin: "psql -h /run/postgresql -U postgres -qAtc 'show data_checksums' -c 'show full_page_writes' | grep -c on | grep -qx 2 && \
            psql -h /run/postgresql -U postgres -qAtc 'create extension amcheck' \
            -c 'create table acknowledged (n int primary key, filler text)'",
    write: "sed \"s/.*/insert into acknowledged values (&, repeat('x', 500)) returning n;/\" | \
            psql -h /run/postgresql -U postgres -qAt",
    count: "set -- $(psql -h /run/postgresql -U postgres -qAtF ' ' -c \
            'select count(*), coalesce(min(n), 1), coalesce(max(n), 0) from acknowledged'); \
            test \"$2 $3\" = \"1 $1\" && echo $1",
    check: "psql -h /run/postgresql -U postgres -qAt -v ON_ERROR_STOP=1 \
            -c \"select h.* from pg_class c, verify_heapam(c.oid) h where c.relkind in ('r', 't', 'm')\" \
            -c \"select from pg_class c join pg_am a on a.oid = c.relam, bt_index_check(c.oid, true) where a.amname = 'btree'\" | \
            grep . || true",
};

/// SQLite with a rollback journal.
pub const SQLITE: Database = Database {
    image: "sqlite",
    ready: "true",
    begin: "sqlite3 /data/db 'create table acknowledged (n integer primary key, filler)'",
    write: "sed 's/.*/insert into acknowledged values (&, hex(randomblob(300))); select &;/' | \
            sqlite3 -cmd 'pragma synchronous=full' /data/db",
    count: "set -- $(sqlite3 -separator ' ' /data/db \
            'select count(*), coalesce(min(n), 1), coalesce(max(n), 0) from acknowledged'); \
            test \"$2 $3\" = \"1 $1\" && echo $1",
    check: "sqlite3 /data/db 'pragma integrity_check' | grep -vx ok || true",
};

/// SQLite with a write-ahead log.
pub const SQLITE_WAL: Database = Database {
    begin: "sqlite3 /data/db 'pragma journal_mode=wal' \
            'create table acknowledged (n integer primary key, filler)' | grep -qx wal",
    ..SQLITE
};

/// LMDB, which writes to its pages and keeps no log.
pub const LMDB: Database = Database {
    image: "lmdb",
    ready: "true",
    begin: "mkdir /data/db",
    write: "while read n; do printf '%s\\n%s\\n' $n $n | mdb_load -T /data/db && echo $n || break; done",
    count: "mdb_dump -p /data/db | awk '/^ / && ++line % 2 { n++; if ($1 + 0 > last) last = $1 + 0 } \
            END { print n + 0; exit n != last }'",
    check: "mkdir /tmp/copy && mdb_copy -c /data/db /tmp/copy 2>&1; rm -r /tmp/copy",
};

/// etcd.
pub const ETCD: Database = Database {
    image: "etcd",
    ready: "etcdctl --command-timeout=2s endpoint health",
    begin: "true",
    write: "while read n; do etcdctl put $n $n > /dev/null && echo $n || break; done",
    count: "etcdctl get '' --prefix --keys-only | awk 'NF { n++; if ($1 + 0 > last) last = $1 + 0 } \
            END { print n + 0; exit n != last }'",
    check: "etcdctl alarm list",
};

/// How a database's container begins, is spoken to and ends.
pub trait Engine {
    /// Starts a container from the image, with the directory of the node's `acks` at `/acks`.
    ///
    /// # Errors
    /// When it does not start.
    fn begin(&mut self, image: &str, acks: &Path) -> Result<()>;
    /// Runs a script in it, and answers with what was printed.
    ///
    /// # Errors
    /// When the script fails.
    fn sh(&self, script: &str) -> Result<String>;
    /// Kills it without warning and removes all that the engine has of it, its anonymous volume too.
    ///
    /// # Errors
    /// When something of it stays.
    fn end(&mut self, round: usize) -> Result<()>;
}

const LIMIT: Duration = Duration::from_secs(60);
/// How many rows are acknowledged, at least, before it is killed.
const ROWS: usize = 200;

/// The last number of a file to which one is added at a time.
fn last(acks: &Path) -> usize {
    let text = fs::read_to_string(acks).unwrap_or_default();
    // What follows the last newline is half a number.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().last().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Kills a database `rounds` times while it writes. Each time a new container must have every acknowledged row.
///
/// # Errors
/// When one is lost, or files are damaged.
pub fn survives(database: &Database, engine: &mut dyn Engine, acks: &Path, rounds: usize) -> Result<()> {
    let _ = fs::remove_dir_all(acks);
    fs::create_dir_all(acks)?;
    let file = acks.join("acknowledged");
    let life = |engine: &mut dyn Engine| -> Result<()> {
        engine.begin(database.image, acks)?;
        let mut last = Ok(String::new());
        let ready = until(database.image, LIMIT, || {
            last = engine.sh(database.ready);
            last.is_ok()
        });
        last.and(ready.map(|()| String::new())).map(drop)
    };
    life(engine)?;
    engine.sh(database.begin).context("make a table")?;
    let mut kept = 0;
    for round in 0..rounds {
        let write = format!(
            "seq {} 10000000 | {} >> /acks/acknowledged",
            kept + 1,
            database.write
        );
        // It goes on when the call that began it has returned, and ends with its container.
        engine.sh(&format!(
            "setsid sh -c {} </dev/null >/dev/null 2>&1 &",
            quoted(&write)
        ))?;
        until("rows", LIMIT, || last(&file) >= kept + ROWS)?;
        engine.end(round)?;
        life(engine)?;
        // Only now is it certain that nothing of the life before writes any more: containerd 1.6 may call a pod removed
        // whose shim was killed and whose processes are still about to be, and the state's next user ends them first.
        let acknowledged = last(&file);
        let count: usize = engine
            .sh(database.count)
            .with_context(|| format!("rows are missing between 1 and {acknowledged}"))?
            .trim()
            .parse()?;
        // One may have been written and not yet acknowledged.
        ensure!(
            (acknowledged..=acknowledged + 1).contains(&count),
            "{count} rows where {acknowledged} were acknowledged"
        );
        let wrong = engine.sh(database.check).context("check the files")?;
        ensure!(wrong.is_empty(), "{wrong}");
        kept = count;
    }
    engine.end(rounds)
}

/// A script as one word of another.
#[must_use]
pub fn quoted(script: &str) -> String {
    format!("'{}'", script.replace('\'', "'\\''"))
}
