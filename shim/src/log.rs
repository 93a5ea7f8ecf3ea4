//! The shim's log: lines in containerd's own form, on the fifo that containerd reads.

use std::{
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Sends what is traced from now on to the fifo. Without one there is no log: the shim has nowhere to complain.
pub fn to_fifo(fifo: &Path, debug: bool) {
    // Opened both ways, a fifo without a reader (containerd is away) gives no error and no SIGPIPE; when it is
    // full, lines are dropped rather than the shim blocked.
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(fifo);
    let Ok(file) = opened else { return };
    let level = if debug { Level::DEBUG } else { Level::INFO };
    // A second call (tests) keeps the first log.
    let _ = tracing::subscriber::set_global_default(Fifo { file, level });
}

struct Fifo {
    file: File,
    level: Level,
}

impl Subscriber for Fifo {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= &self.level
    }

    fn event(&self, event: &Event<'_>) {
        let line = line(event);
        // There is nobody to tell that a log line was lost.
        let _ = (&self.file).write(line.as_bytes());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// `time="…" level=info msg="…" key=value runtime=io.containerd.diffkeeper.v1`, as logrus writes it.
fn line(event: &Event<'_>) -> String {
    let level = match *event.metadata().level() {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    let mut fields = Fields::default();
    event.record(&mut fields);
    let now = protobuf::well_known_types::timestamp::Timestamp::now();
    format!(
        "time={:?} level={level} msg={:?}{} runtime=io.containerd.diffkeeper.v1\n",
        utc(now.seconds, now.nanos),
        fields.message,
        fields.rest
    )
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        self.push(field, &text);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value);
    }
}

impl Fields {
    fn push(&mut self, field: &Field, text: &str) {
        if field.name() == "message" {
            self.message.push_str(text);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(self.rest, " {}={text:?}", field.name());
        }
    }
}

/// RFC 3339 in UTC, by the days-to-civil algorithm (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn utc(seconds: i64, nanos: i32) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn civil_time() {
        assert_eq!(utc(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(utc(951_782_400, 5), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(utc(1_795_201_330, 0), "2026-11-20T19:02:10.000000000Z");
    }
}
