//! What is different where a person looks on: colour, and what is waited for.

use std::{
    borrow::Cow,
    env,
    io::{self, IsTerminal as _, Write as _},
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anstream::{AutoStream, ColorChoice, stream::RawStream};
use anstyle::{AnsiColor, Style};
use tokio::{
    sync::{oneshot, watch},
    time::{self, Instant},
};

use crate::{Cli, LogFormat};

/// Whoever waits for longer than this is told what for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a line can begin with that has a colour, and whether all of the line has it.
const MARKS: [(&str, AnsiColor, bool); 11] = [
    ("+ ", AnsiColor::Green, true),
    ("- ", AnsiColor::Red, true),
    ("~ ", AnsiColor::Yellow, true),
    ("✓", AnsiColor::Green, false),
    ("!", AnsiColor::Yellow, false),
    ("✗", AnsiColor::Red, false),
    ("error:", AnsiColor::Red, false),
    ("warning:", AnsiColor::Yellow, false),
    ("finding:", AnsiColor::Yellow, false),
    ("note:", AnsiColor::Cyan, false),
    ("hint:", AnsiColor::Cyan, false),
];

/// Whether the last line on stderr says what is waited for, and is to be written over.
static WAITING: AtomicBool = AtomicBool::new(false);

/// Whether it is a terminal, and nobody has said that they want no colour (`NO_COLOR`).
pub(crate) fn wants_colour(stream: &impl RawStream) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

/// The text with its marks in colour, where colour is wanted.
pub(crate) fn painted<'t>(stream: &impl RawStream, text: &'t str) -> Cow<'t, str> {
    if wants_colour(stream) {
        text.split_inclusive('\n').map(paint).collect::<String>().into()
    } else {
        text.into()
    }
}

fn paint(line: &str) -> String {
    let text = line.trim_start();
    let Some((mark, colour, all)) = MARKS.iter().find(|(mark, ..)| text.starts_with(mark)) else {
        return line.to_owned();
    };
    let style = Style::new().fg_color(Some((*colour).into()));
    let begin = line.len() - text.len();
    let end = if *all { line.trim_end_matches('\n').len() } else { begin + mark.len() };
    let (indent, marked, rest) = (&line[..begin], &line[begin..end], &line[end..]);
    format!("{indent}{style}{marked}{style:#}{rest}")
}

/// A line or more on stderr. Should that fail, there is nowhere left to complain to.
pub(crate) fn say(text: &str) {
    let _ = writeln!(stderr(), "{}", painted(&io::stderr(), text));
}

/// Stderr, at the beginning of a line.
pub(crate) fn stderr() -> io::Stderr {
    clear();
    io::stderr()
}

fn clear() {
    if WAITING.swap(false, Ordering::Relaxed) {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}

/// Does the work, and says on a terminal what it is `doing` if that takes long.
pub(crate) fn waiting<'a, T: 'a>(
    cli: &Cli,
    doing: watch::Receiver<&'static str>,
    work: impl Future<Output = T> + 'a,
) -> Pin<Box<dyn Future<Output = T> + 'a>> {
    let dumb = env::var_os("TERM").is_none_or(|it| it == "dumb");
    let quiet = cli.quiet || matches!(cli.log_format, LogFormat::Json);
    if quiet || dumb || !io::stderr().is_terminal() {
        return Box::pin(work);
    }
    Box::pin(async {
        let (end, ended) = oneshot::channel();
        // Beside the work, which may think for seconds without a pause.
        let teller = tokio::spawn(tell(doing, ended));
        let done = work.await;
        let _ = end.send(());
        let _ = teller.await;
        clear();
        done
    })
}

async fn tell(mut doing: watch::Receiver<&'static str>, mut ended: oneshot::Receiver<()>) {
    let mut since = Instant::now();
    loop {
        tokio::select! {
            _ = &mut ended => return,
            () = time::sleep(PATIENCE) => (),
        }
        if doing.has_changed().unwrap_or_default() {
            since = Instant::now() - PATIENCE;
        }
        let (what, seconds) = (*doing.borrow_and_update(), since.elapsed().as_secs());
        let _ = write!(stderr(), "{what} … {seconds} s");
        WAITING.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_painted_and_nothing_else() {
        for (line, painted) in [
            ("+ user \"a\"\n", "\u{1b}[32m+ user \"a\"\u{1b}[0m\n"),
            ("    - publish \"a\"\n", "    \u{1b}[31m- publish \"a\"\u{1b}[0m\n"),
            ("✓ all is well\n", "\u{1b}[32m✓\u{1b}[0m all is well\n"),
            ("  hint: wait", "  \u{1b}[36mhint:\u{1b}[0m wait"),
            ("nothing to change\n", "nothing to change\n"),
            ("\n", "\n"),
        ] {
            assert_eq!(paint(line), painted);
        }
    }
}
