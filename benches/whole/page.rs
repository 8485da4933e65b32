//! The page that tells what was measured, and its plots.

use std::{fmt::Write as _, time::Duration};

use crate::{Change, Fared, Report, STEPS, Size, Way};

/// What is wanted, what was found, and whether that is enough.
struct Target {
    what: String,
    most: f64,
    found: f64,
    unit: &'static str,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Listing => "HTTP, listing",
            Way::View => "HTTP, view",
            Way::Database => "SQLite",
        }
    }
}

impl Report {
    pub(crate) fn page(&self) -> String {
        let Report { versions, load, burst, .. } = self;
        format!(
            "<!-- Measured and written by `cargo xtask bench`. -->\n\n\
             # Benchmarks\n\n\
             Real servers on one machine, in one run. {versions}. \
             Load average when it began: {load}.\n\n\
             *In force* means that a connected client has seen its permissions change: it publishes \
             every two milliseconds and looks at the server's answer. The clock starts before the \
             request to PocketBase. *Own reload* is the same for a SIGHUP with the same file put there \
             by hand. *Until the order* is everything that happens before nats-server is told to \
             reload: PocketBase's commit and event, reading, deciding, rendering, checking and \
             writing; without the debounce, which is a setting (here 10 ms). The steps are what \
             `pb-nats -v` says. `nats-server -t` runs beside the reload, on the same cores.\n\n\
             ## Targets\n\n{}\n\
             ## One edit, from the request to PocketBase until it is in force\n\n\
             ![Time until in force, by users](benchmarks-latency.svg)\n\n{}\n\
             ## Memory, rest and first start\n\n\
             The peak is that of all this, and of another start with the file there and a user \
             changed meanwhile.\n\n\
             ![Memory, by users](benchmarks-memory.svg)\n\n{}\n\
             ## A deactivated user's connection\n\n\
             So many clients of other users are connected; pb-nats has the system account.\n\n{}\n\
             ## A burst\n\n\
             {} edits of 1,000 users in {:.1} s: {} passes, {} reloads, the last in force after \
             {}, {}.\n",
            self.targets(),
            latency(&self.sizes),
            sizes(&self.sizes),
            self.cut_offs(),
            burst.edits,
            burst.took.as_secs_f64(),
            burst.passes,
            burst.reloads,
            told(burst.last),
            if burst.missed { "**something missed**" } else { "nothing missed" },
            load = load.split_whitespace().next().unwrap_or("unknown"),
        )
    }

    /// Each target, and whether it is met.
    pub(crate) fn targets(&self) -> String {
        let mut targets = Vec::new();
        for size in self.sizes.iter().filter(|it| it.users >= 1000) {
            let reload = median(&size.reload).as_secs_f64();
            for (way, fared) in &size.ways {
                let most = match (way, size.users) {
                    (Way::View, 100_000) => 0.25,
                    (Way::Database, 100_000) => 0.15,
                    (Way::View | Way::Database, 1000) => 1.0,
                    _ => continue,
                };
                let ours = median(&all(fared, |it| it.ours)).as_secs_f64();
                let what =
                    format!("{} users, {}: until the order", thousands(size.users), way.name());
                targets.push(Target { what, most, found: ours / reload, unit: "× own reload" });
            }
        }
        if let Some(size) = self.sizes.last() {
            for (way, fared) in &size.ways {
                let mut add = |what: &str, most, found, unit| {
                    let what = format!("{} users, {}: {what}", thousands(size.users), way.name());
                    targets.push(Target { what, most, found, unit });
                };
                #[expect(clippy::cast_precision_loss, reason = "KiB")]
                add("peak memory", 120.0, fared.peak as f64 / 1024.0, "MiB");
                let (idle, foreign) = match way {
                    Way::Database => (0.5, 5.0),
                    Way::Listing | Way::View => (0.2, 0.0),
                };
                add("idle CPU", idle, fared.idle * 100.0, "% of a core");
                if *way == Way::View {
                    add(
                        "a pass that changes nothing",
                        0.4,
                        median(&fared.nothing).as_secs_f64(),
                        "s",
                    );
                    #[expect(clippy::cast_precision_loss, reason = "a few")]
                    add("passes for another collection", foreign, fared.foreign.0 as f64, "");
                }
                if *way == Way::Database {
                    add(
                        "CPU under constant foreign writes",
                        foreign,
                        fared.foreign.1 * 100.0,
                        "% of a core",
                    );
                }
            }
        }
        let mut text = String::from("| | at most | measured | |\n| --- | ---: | ---: | --- |\n");
        for Target { what, most, found, unit } in targets {
            let met = if found <= most { "met" } else { "**missed**" };
            let _ = writeln!(text, "| {what} | {most} {unit} | {found:.2} {unit} | {met} |");
        }
        text
    }

    fn cut_offs(&self) -> String {
        let mut text = String::from(
            "| credential | clients | closed after, median | slowest | whole reload proven after |\n\
             | --- | ---: | ---: | ---: | ---: |\n",
        );
        for it in &self.cut_offs {
            let slowest = it.closed.iter().max().copied().unwrap_or_default();
            let (closed, proven) = (median(&it.closed), median(&it.proven));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                it.credential,
                it.clients,
                told(closed),
                told(slowest),
                told(proven)
            );
        }
        text
    }

    pub(crate) fn latency_plot(&self) -> String {
        let mut lines =
            vec![("nats-server's own reload", self.points(|it| Some(seconds(&it.reload))))];
        for way in [Way::Listing, Way::View, Way::Database] {
            let total = |it: &Size| Some(seconds(&all(it.way(way)?, |it| it.total)));
            lines.push((way.name(), self.points(total)));
        }
        plot("Time until one edit is in force (s)", &lines)
    }

    pub(crate) fn memory_plot(&self) -> String {
        #[expect(clippy::cast_precision_loss, reason = "KiB")]
        let peak = |way| move |it: &Size| Some(it.way(way)?.peak as f64 / 1024.0);
        let ways = [Way::Listing, Way::View, Way::Database];
        let lines: Vec<_> = ways.map(|way| (way.name(), self.points(peak(way)))).into();
        plot("Peak memory of pb-nats (MiB)", &lines)
    }

    fn points(&self, value: impl Fn(&Size) -> Option<f64>) -> Vec<(f64, f64)> {
        #[expect(clippy::cast_precision_loss, reason = "a million")]
        let points = self.sizes.iter().filter_map(|it| Some((it.users as f64, value(it)?)));
        points.collect()
    }
}

impl Size {
    fn way(&self, way: Way) -> Option<&Fared> {
        self.ways.iter().find(|it| it.0 == way).map(|it| &it.1)
    }
}

/// How long an edit takes, and its parts.
fn latency(sizes: &[Size]) -> String {
    let mut text = String::from("| users | | median | p99 | until the order |");
    for (step, ..) in STEPS {
        let _ = write!(text, " {step} |");
    }
    let _ = writeln!(text, " edits |\n| ---: | --- |{}", " ---: |".repeat(STEPS.len() + 4));
    for size in sizes {
        let users = thousands(size.users);
        let (half, most) = (median(&size.reload), p99(&size.reload));
        let blanks = " |".repeat(STEPS.len() + 1);
        let count = size.reload.len();
        let _ = writeln!(
            text,
            "| {users} | own reload ({} KiB) | {} | {} |{blanks} {count} |",
            size.file / 1024,
            told(half),
            told(most)
        );
        for (way, fared) in &size.ways {
            let (total, ours) = (all(fared, |it| it.total), all(fared, |it| it.ours));
            let _ = write!(
                text,
                "| {users} | {} | {} | {} | {} |",
                way.name(),
                told(median(&total)),
                told(p99(&total)),
                told(median(&ours))
            );
            for step in 0..STEPS.len() {
                let _ = write!(text, " {} |", told(median(&all(fared, |it| it.steps[step]))));
            }
            let _ = writeln!(text, " {} |", total.len());
        }
    }
    text
}

/// What it takes to be there at each size.
pub(crate) fn sizes(sizes: &[Size]) -> String {
    let mut text = String::from(
        "| users | | peak memory | at rest | idle CPU | a pass that changes nothing | its CPU | \
         foreign writes: passes | CPU | first start until the order | until in force |\n\
         | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for size in sizes {
        for (way, fared) in &size.ways {
            let _ = writeln!(
                text,
                "| {} | {} | {} MiB | {} MiB | {:.2} % | {} | {} | {} | {:.1} % | {} | {} |",
                thousands(size.users),
                way.name(),
                fared.peak / 1024,
                fared.rest / 1024,
                fared.idle * 100.0,
                told(median(&fared.nothing)),
                told(fared.nothing_cpu),
                fared.foreign.0,
                fared.foreign.1 * 100.0,
                told(fared.first_order),
                told(fared.first),
            );
        }
    }
    text
}

/// Lines over the number of users, both axes logarithmic.
fn plot(title: &str, lines: &[(&str, Vec<(f64, f64)>)]) -> String {
    const COLOURS: [&str; 4] = ["#888888", "#d95f02", "#1b9e77", "#7570b3"];
    let (width, height, left, bottom) = (640.0, 360.0, 60.0, 320.0);
    let points = || lines.iter().flat_map(|it| &it.1);
    let low = points().map(|it| it.1.log10().floor()).fold(f64::INFINITY, f64::min);
    let high = points().map(|it| it.1.log10().ceil()).fold(low + 1.0, f64::max);
    let last = points().map(|it| it.0.log10()).fold(2.0, f64::max);
    let x = |users: f64| left + (users.log10() - 1.0) / (last - 1.0) * (width - left - 170.0);
    let y = |value: f64| bottom - (value.log10() - low) / (high - low) * (bottom - 40.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"22\" font-size=\"14\">{title}</text>\n"
    );
    let mut tick = low;
    while tick <= high {
        let (value, at) = (10f64.powf(tick), y(10f64.powf(tick)));
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            width - 170.0,
            left - 6.0,
            at + 4.0
        );
        tick += 1.0;
    }
    for users in [10_u32, 1000, 10_000, 100_000] {
        let at = x(f64::from(users));
        if at <= width - 169.0 {
            let _ = writeln!(
                svg,
                "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                thousands(users as usize)
            );
        }
    }
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"{}\">users</text>", bottom + 34.0);
    for (n, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let path: Vec<_> =
            points.iter().map(|it| format!("{:.1},{:.1}", x(it.0), y(it.1))).collect();
        let at = 50 + n * 18;
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{at}\" fill=\"{colour}\">{name}</text>",
            path.join(" "),
            width - 160.0
        );
    }
    svg + "</svg>\n"
}

fn all(fared: &Fared, of: impl Fn(&Change) -> Duration) -> Vec<Duration> {
    fared.changes.iter().map(of).collect()
}

fn seconds(all: &[Duration]) -> f64 {
    median(all).as_secs_f64()
}

fn median(all: &[Duration]) -> Duration {
    rank(all, 50)
}

fn p99(all: &[Duration]) -> Duration {
    rank(all, 99)
}

/// The nearest rank: of a hundred or fewer, the 99th percentile is the longest or next to it.
fn rank(all: &[Duration], percent: usize) -> Duration {
    let mut all = all.to_vec();
    all.sort_unstable();
    all.get((all.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

fn told(it: Duration) -> String {
    match it.as_secs_f64() {
        it if it >= 1.0 => format!("{it:.2} s"),
        it if it >= 0.01 => format!("{:.0} ms", it * 1e3),
        it => format!("{:.1} ms", it * 1e3),
    }
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
