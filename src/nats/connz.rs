//! Who is connected to a server, page by page.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::Deserialize;

use super::{Connection, varz::timestamp};

/// How many connections a server tells at once: at first, and at most.
const PAGE: usize = 1024;

const LARGEST_PAGE: usize = 16 * 1024;

/// With how many that are known already the next page begins.
const OVERLAP: usize = 128;

/// How long making a list takes at most. Who began later than that after it is from before the clock
/// was set back.
const LISTING: Duration = Duration::from_secs(5);

/// The account that users of `authorization` are in.
pub(super) const GLOBAL: &str = "$G";

/// Connections, as a server lists them: in the order of their numbers, which only grow, a page at a
/// time.
///
/// Who comes meanwhile stands at the end. But where one goes, those behind it move up, and the next
/// page may begin behind some that nobody has seen. So it has to begin with one that is known; else
/// it is asked for again, from further ahead.
pub(super) struct Pages {
    pub(super) offset: usize,
    pub(super) limit: usize,
    pub(super) found: Vec<Connected>,
}

impl Pages {
    pub(super) fn new() -> Pages {
        Pages { offset: 0, limit: PAGE, found: Vec::new() }
    }

    /// Where the next page begins, and how long it is at most.
    pub(super) fn next(&self) -> (usize, usize) {
        (self.offset, self.limit)
    }

    /// Takes the page. Whether it was the last.
    pub(super) fn add(&mut self, page: Connz) -> bool {
        let Connz { now, connections } = page;
        let known = self.found.last().map_or(0, |it| it.cid);
        if self.offset > 0 && connections.first().is_none_or(|it| it.cid > known) {
            self.offset = self.offset.saturating_sub(self.limit);
            return false;
        }
        let count = connections.len();
        let new = connections.into_iter().filter(|it| it.cid > known);
        self.found.extend(new.map(|it| it.by(now)));
        let last = count < self.limit;
        self.offset += count.saturating_sub(OVERLAP);
        // To a server each page is as much work as all of them.
        self.limit = (self.limit * 2).min(LARGEST_PAGE);
        last
    }
}

/// How many connections each user of the global account has.
pub(super) fn counted(connections: Vec<Connected>) -> BTreeMap<String, usize> {
    let mut users = BTreeMap::new();
    let clients = connections.into_iter().filter(|it| it.is_of_ours() && !it.is_leaf());
    for it in clients {
        *users.entry(it.authorized_user).or_default() += 1;
    }
    users
}

/// A page of a server's connections.
#[derive(Deserialize)]
pub(super) struct Connz {
    /// By the server's clock.
    #[serde(deserialize_with = "timestamp")]
    now: SystemTime,
    connections: Vec<Connected>,
}

impl Default for Connz {
    /// Of nobody.
    fn default() -> Connz {
        Connz { now: SystemTime::UNIX_EPOCH, connections: Vec::new() }
    }
}

#[derive(Deserialize)]
pub(super) struct Connected {
    pub(super) cid: u64,
    #[serde(default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) authorized_user: String,
    /// Unless it is the global one.
    #[serde(default)]
    pub(super) account: String,
    #[serde(deserialize_with = "timestamp")]
    pub(super) start: SystemTime,
}

impl Connected {
    /// Another account may have a user of the same name.
    pub(super) fn is_of_ours(&self) -> bool {
        matches!(&*self.account, "" | GLOBAL)
    }

    pub(super) fn is_leaf(&self) -> bool {
        self.kind == "Leafnode"
    }

    /// As it is at this time of the server. If it is to begin later, then the server's clock was set
    /// back since, and it began at some time before that.
    pub(super) fn by(self, now: SystemTime) -> Connected {
        let ahead = self.start.duration_since(now).is_ok_and(|it| it > LISTING);
        let start = if ahead { SystemTime::UNIX_EPOCH } else { self.start };
        Connected { start, ..self }
    }

    pub(super) fn on(self, server: &str) -> Connection {
        let leaf = self.is_leaf();
        let Connected { cid: number, kind: _, authorized_user: user, account: _, start } = self;
        Connection { server: server.to_owned(), number, user, start, leaf }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{Connected, Connz, LISTING, OVERLAP, PAGE, Pages};

    pub(super) fn connected(cid: u64, start: SystemTime) -> Connected {
        let [kind, authorized_user, account] = [const { String::new() }; 3];
        Connected { cid, kind, authorized_user, account, start }
    }

    /// Whom one finds if so many of the first go from each page to the next.
    pub(super) fn found(
        mut connections: Vec<u64>,
        mut going: impl Iterator<Item = usize>,
    ) -> Vec<u64> {
        let now = SystemTime::now();
        let mut pages = Pages::new();
        loop {
            let (offset, limit) = pages.next();
            let page = connections.iter().skip(offset).take(limit).map(|it| connected(*it, now));
            if pages.add(Connz { now, connections: page.collect() }) {
                return pages.found.iter().map(|it| it.cid).collect();
            }
            connections.drain(..going.next().unwrap_or_default().min(connections.len()));
        }
    }

    #[test]
    pub(super) fn nobody_is_missed_though_others_go_from_page_to_page() {
        let all: Vec<u64> = (1..=10_000).map(|it| it * 3).collect();
        assert_eq!(found(all.clone(), std::iter::empty()), all);
        for goes in [1, OVERLAP - 1, OVERLAP, OVERLAP + 1, PAGE, 3 * PAGE, 9_999, 10_000] {
            for times in [1, 2, 20] {
                let found = found(all.clone(), std::iter::repeat_n(goes, times));
                assert!(found.is_sorted_by(|a, b| a < b));
                let stay = &all[(goes * times).min(all.len())..];
                assert!(stay.iter().all(|it| found.contains(it)), "{goes}, {times} times");
            }
        }
    }

    /// Else whoever is to go, and came before that, would count as one who came since.
    #[test]
    pub(super) fn who_began_after_now_began_before_the_clock_was_set_back() {
        let now = SystemTime::now();
        let start = |it: Duration| connected(1, now + it).by(now).start;
        assert_eq!(start(Duration::from_hours(1)), SystemTime::UNIX_EPOCH);
        assert_eq!(start(LISTING / 2), now + LISTING / 2, "it came while the list was made");
    }
}
