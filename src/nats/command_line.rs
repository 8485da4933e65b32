//! What a nats-server on this machine was told on its command line, which its config does not say.

use std::path::{Path, PathBuf};

/// A nats-server that runs with a certain config.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// Its process.
    pub(crate) pid: i32,
    /// The address of its monitor, as seen from its machine, and the option that says so.
    pub(crate) monitor: Option<(String, String)>,
    /// Its pid file.
    pub(crate) pid_file: Option<PathBuf>,
}

impl CommandLine {
    /// Of the one nats-server that runs with this config, as far as the system shows its processes.
    #[cfg(target_os = "linux")]
    pub(crate) fn of(config: &Path) -> Option<CommandLine> {
        let config = std::fs::canonicalize(config).ok()?;
        let processes = std::fs::read_dir("/proc").ok()?.filter_map(Result::ok);
        let mut found = processes.filter_map(|it| {
            let pid: i32 = it.file_name().to_str()?.parse().ok()?;
            let name = std::fs::read_to_string(it.path().join("comm")).ok()?;
            let text = std::fs::read_to_string(it.path().join("cmdline")).ok()?;
            let options = Options::of(text.split('\0').filter(|_| name.starts_with("nats-server")));
            // Whose process it is may look, and so may root.
            let folder = std::fs::read_link(it.path().join("cwd")).unwrap_or_default();
            let theirs = std::fs::canonicalize(folder.join(options.config?)).ok()?;
            (theirs == config).then(|| CommandLine {
                pid,
                monitor: options.monitor(),
                pid_file: options.pid_file.map(|it| folder.join(it)),
            })
        });
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// Of the one nats-server that runs with this config: other systems do not show.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn of(_: &Path) -> Option<CommandLine> {
        None
    }
}

/// The options that matter.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options<'a> {
    config: Option<&'a str>,
    /// The option itself, and its value.
    port: Option<(&'a str, &'a str)>,
    host: Option<&'a str>,
    pid_file: Option<&'a str>,
}

impl<'a> Options<'a> {
    fn of(mut words: impl Iterator<Item = &'a str>) -> Options<'a> {
        let mut options = Options::default();
        while let Some(word) = words.next() {
            let (option, value) = match word.split_once('=') {
                Some((option, value)) => (option, Some(value)),
                None => (word, None),
            };
            // One dash or two, it is the same.
            let Some(name) = option.strip_prefix('-').map(|it| it.strip_prefix('-').unwrap_or(it))
            else {
                continue;
            };
            if !["c", "config", "m", "http_port", "a", "addr", "net", "P", "pid"].contains(&name) {
                continue;
            }
            let Some(value) = value.or_else(|| words.next()) else { break };
            match name {
                "c" | "config" => options.config = Some(value),
                "m" | "http_port" => options.port = Some((option, value)),
                "P" | "pid" => options.pid_file = Some(value),
                _ => options.host = Some(value),
            }
        }
        options
    }

    fn monitor(&self) -> Option<(String, String)> {
        let (option, port) = self.port?;
        let port = port.parse::<u16>().ok().filter(|it| *it > 0)?;
        let host = match self.host {
            None | Some("" | "0.0.0.0" | "::" | "[::]") => "127.0.0.1",
            Some(host) => host,
        };
        Some((format!("http://{host}:{port}"), format!("{option} {port}")))
    }
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn options_are_read_as_nats_server_reads_them() {
        let of = |text: &'static str| Options::of(text.split(' '));
        let options = of("nats-server -D --config=/etc/n.conf -m 8222 -P /run/n.pid -js");
        assert_eq!((options.config, options.pid_file), (Some("/etc/n.conf"), Some("/run/n.pid")));
        assert_eq!(options.monitor(), Some(("http://127.0.0.1:8222".into(), "-m 8222".into())));
        let options = of("nats-server -c n.conf --addr 10.0.0.1 --http_port=80");
        assert_eq!(options.monitor(), Some(("http://10.0.0.1:80".into(), "--http_port 80".into())));
        assert_eq!(of("nats-server -ms 8222 -m -1").monitor(), None);
    }
}
