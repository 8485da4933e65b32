use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map},
    sync::Arc,
};

use serde::Serialize;

use super::{ConnectionType, Desired, Grant, Responses, Rules, Subject, Subjects, User};

/// Who gains and who loses what, told once for all to whom the same happens.
///
/// For people: [`Changes`](super::Changes) is what decisions are made by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Diff {
    /// Each with users of its own: first the roles and the defaults that differ, then who comes,
    /// who changes and who goes.
    pub hunks: Vec<Hunk>,
}

/// What happens to some users alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hunk {
    /// Whether they come, change or go.
    pub change: Change,
    /// Their names, in order. None has a role or the defaults before and after whose rights differ:
    /// then there may be none.
    pub users: Vec<String>,
    /// Where their rights were written. `None` for who comes.
    pub before: Option<Holding>,
    /// Where their rights are to be written. `None` for who goes.
    pub after: Option<Holding>,
    /// Whether they are to prove otherwise who they are.
    pub credential_changed: bool,
    /// The ways of connecting that they had and are to have, if these differ. Empty: any.
    pub connection_types: Option<[Vec<&'static str>; 2]>,
    /// What they may do that they could not.
    pub gains: Arc<Rights>,
    /// What they could do that they may not.
    pub losses: Arc<Rights>,
}

/// Whether users come, change or go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// They come.
    Added,
    /// They have other rights, or prove otherwise who they are.
    Changed,
    /// They go.
    Removed,
}

/// Where a user's rights are written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Holding {
    /// In the default permissions.
    Defaults,
    /// In the role with this identifier.
    Role(Arc<str>),
    /// With the user alone: several roles, placeholders filled in, additions.
    Own,
}

/// Rights that are gained, or that are lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Rights {
    /// Subjects that may be published to.
    pub publish: BTreeSet<String>,
    /// Subjects whose denial to publishers goes, or comes.
    pub publish_denials: BTreeSet<String>,
    /// Subjects that may be subscribed to.
    pub subscribe: BTreeSet<String>,
    /// Subjects whose denial to subscribers goes, or comes.
    pub subscribe_denials: BTreeSet<String>,
    /// How requests may be answered, or could be.
    pub responses: Option<Answers>,
}

/// [`Responses`] in plain numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Answers {
    /// How many answers a request may have.
    pub max: u32,
    /// For how many milliseconds. 0: as nats-server says.
    pub ttl_ms: u64,
}

/// What users must have in common to be told of at once.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Kind {
    change: Change,
    before: Option<Holding>,
    after: Option<Holding>,
    credential_changed: bool,
    connection_types: Option<[Vec<&'static str>; 2]>,
    /// The place of gains and losses in [`Between::known`].
    rights: usize,
}

impl Diff {
    /// What turns `old` into `new`.
    pub fn between(old: &Desired, new: &Desired) -> Diff {
        let nothing = Rules::default();
        let mut between = Between::default();
        let mut groups: HashMap<Kind, Vec<String>> = HashMap::new();

        let shared = old.roles.iter().filter_map(|(name, was)| {
            Some((Holding::Role(Arc::clone(name)), was, new.roles.get(name)?))
        });
        let defaults = (Holding::Defaults, &old.defaults, &new.defaults);
        for (holding, was, is) in shared.chain([defaults]) {
            if was != is {
                let rights = between.rules(was, is);
                groups.insert(Kind::of(Some(holding.clone()), Some(holding), rights), Vec::new());
            }
        }

        for (login, is) in &new.users {
            let kind = match old.users.get(login) {
                None => {
                    let rights = between.rules(&nothing, new.rules(is));
                    Kind::of(None, Some(Holding::of(is)), rights)
                }
                Some(was) => {
                    let (before, after) = (old.rules(was), new.rules(is));
                    let types = (was.connection_types != is.connection_types)
                        .then(|| [types(was), types(is)]);
                    let credential_changed = was.credential != is.credential;
                    if types.is_none() && !credential_changed && !between.differ(before, after) {
                        continue;
                    }
                    let rights = between.rules(before, after);
                    Kind {
                        credential_changed,
                        connection_types: types,
                        ..Kind::of(Some(Holding::of(was)), Some(Holding::of(is)), rights)
                    }
                }
            };
            groups.entry(kind).or_default().push(login.to_string());
        }
        for (login, was) in old.users.iter().filter(|(login, _)| !new.users.contains_key(*login)) {
            let rights = between.rules(old.rules(was), &nothing);
            let kind = Kind::of(Some(Holding::of(was)), None, rights);
            groups.entry(kind).or_default().push(login.to_string());
        }

        let mut hunks: Vec<Hunk> = groups
            .into_iter()
            .map(|(kind, users)| {
                let (gains, losses) = between.known[kind.rights].clone();
                let Kind { change, before, after, credential_changed, connection_types, .. } = kind;
                Hunk {
                    change,
                    users,
                    before,
                    after,
                    credential_changed,
                    connection_types,
                    gains,
                    losses,
                }
            })
            .collect();
        hunks.sort_by(|a, b| a.place().cmp(&b.place()));
        Diff { hunks }
    }

    /// Whether anybody may do or be what they could not: come back, use another password, reach
    /// more.
    pub fn gives(&self) -> bool {
        self.hunks.iter().any(Hunk::gives)
    }

    /// All users to whom something happens.
    pub fn users(&self) -> BTreeSet<String> {
        self.hunks.iter().flat_map(|it| &it.users).cloned().collect()
    }
}

impl Hunk {
    /// The role or the defaults whose rights differ, if that is all that happens.
    pub fn of_all(&self) -> Option<&Holding> {
        let shared = self.before.as_ref().filter(|it| **it != Holding::Own);
        let only = !self.credential_changed && self.connection_types.is_none();
        shared.filter(|_| only && self.before == self.after)
    }

    /// Whether its users may do or be what they could not.
    pub fn gives(&self) -> bool {
        let types = |[was, is]: &[Vec<_>; 2]| {
            !was.is_empty() && (is.is_empty() || is.iter().any(|it| !was.contains(it)))
        };
        let comes = self.change == Change::Added || self.credential_changed;
        let more = *self.gains != Rights::default();
        comes || more || self.connection_types.as_ref().is_some_and(types)
    }

    fn place(&self) -> impl Ord + use<'_> {
        (self.of_all().is_none(), self.change, &self.users, &self.before, &self.after)
    }
}

impl Kind {
    /// The one whose rights are all that differs.
    fn of(before: Option<Holding>, after: Option<Holding>, rights: usize) -> Kind {
        let change = match (&before, &after) {
            (None, _) => Change::Added,
            (Some(_), None) => Change::Removed,
            (Some(_), Some(_)) => Change::Changed,
        };
        Kind { change, before, after, credential_changed: false, connection_types: None, rights }
    }
}

impl Holding {
    fn of(user: &User) -> Holding {
        match &user.grant {
            Grant::Defaults => Holding::Defaults,
            Grant::Role(name) => Holding::Role(Arc::clone(name)),
            Grant::Own(_) => Holding::Own,
        }
    }
}

fn types(user: &User) -> Vec<&'static str> {
    user.connection_types.iter().map(ConnectionType::as_str).collect()
}

/// How rules differ. Thousands may share a role, so two roles are compared once: they are told
/// apart by place.
#[derive(Default)]
struct Between {
    /// The place in `known`, and whether they differ at all.
    compared: HashMap<(*const Rules, *const Rules), (usize, bool)>,
    /// Gains and losses, each pair once.
    known: Vec<(Arc<Rights>, Arc<Rights>)>,
    places: BTreeMap<(Arc<Rights>, Arc<Rights>), usize>,
}

impl Between {
    fn differ(&mut self, old: &Rules, new: &Rules) -> bool {
        self.compare(old, new).1
    }

    fn rules(&mut self, old: &Rules, new: &Rules) -> usize {
        self.compare(old, new).0
    }

    fn compare(&mut self, old: &Rules, new: &Rules) -> (usize, bool) {
        let Between { compared, known, places } = self;
        *compared.entry((old, new)).or_insert_with(|| {
            let pair = (Arc::new(more(old, new)), Arc::new(more(new, old)));
            let place = match places.entry(pair) {
                btree_map::Entry::Occupied(it) => *it.get(),
                btree_map::Entry::Vacant(it) => {
                    known.push(it.key().clone());
                    *it.insert(known.len() - 1)
                }
            };
            (place, old != new)
        })
    }
}

/// What `new` allows beyond `old`.
fn more(old: &Rules, new: &Rules) -> Rights {
    let (publish, publish_denials) = more_in_one(&old.publish, &new.publish);
    let (subscribe, subscribe_denials) = more_in_one(&old.subscribe, &new.subscribe);
    let responses = new
        .responses
        .filter(|new| old.responses.is_none_or(|old| Responses::wider(old, *new) != old));
    let answers = |Responses { max, ttl }| Answers {
        max,
        ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
    };
    Rights {
        publish,
        publish_denials,
        subscribe,
        subscribe_denials,
        responses: responses.map(answers),
    }
}

/// The subjects allowed anew, and those whose denial is gone. What is allowed and denied at once
/// is neither.
fn more_in_one(old: &Subjects, new: &Subjects) -> (BTreeSet<String>, BTreeSet<String>) {
    let told = |it: &Subject| it.as_str().to_owned();
    let allowed =
        new.allow().iter().filter(|it| !within(old.allow(), it) && !within(new.deny(), it));
    // Where nothing was allowed, or nothing is, the denial is not what makes the difference.
    let matters = |it: &&Subject| {
        [old, new].iter().all(|side| side.allow().iter().any(|allowed| allowed.overlaps(it)))
    };
    let lifted = old.deny().iter().filter(|it| !within(new.deny(), it)).filter(matters);
    (allowed.map(told).collect(), lifted.map(told).collect())
}

/// Whether the subject is one of these or within one of them.
///
/// What is said of a queue group holds for no other, and what is said of none for all.
pub(super) fn within(all: &BTreeSet<Subject>, it: &Subject) -> bool {
    all.contains(it) || all.iter().any(|wide| wide.subject() == wide.as_str() && wide.covers(it))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::auth::{ConnectionType, ConnectionTypes, Credential, PasswordHash, Subjects};

    fn subjects(list: &[&str]) -> BTreeSet<Subject> {
        list.iter().map(|it| Subject::parse_subscription(it).unwrap()).collect()
    }

    /// Entries that begin with `!` are denied.
    fn side(list: &[&str]) -> Subjects {
        let denied = list.iter().filter_map(|it| it.strip_prefix('!')).collect::<Vec<_>>();
        let allowed: Vec<_> = list.iter().copied().filter(|it| !it.starts_with('!')).collect();
        Subjects::new(subjects(&allowed), subjects(&denied))
    }

    fn rules(publish: &[&str], subscribe: &[&str]) -> Rules {
        Rules { publish: side(publish), subscribe: side(subscribe), responses: None }
    }

    fn user(password: &str, grant: Grant) -> User {
        let credential = Credential::Password(PasswordHash(password.into()));
        User { credential, grant, connection_types: ConnectionTypes::default() }
    }

    fn role(name: &str) -> Grant {
        Grant::Role(name.into())
    }

    fn desired(roles: &[(&str, &[&str])], users: &[(&str, User)]) -> Desired {
        Desired {
            defaults: rules(&["PUBLIC.>"], &[]),
            roles: roles.iter().map(|(name, it)| ((*name).into(), rules(it, &[]))).collect(),
            users: users.iter().map(|(name, it)| ((*name).into(), it.clone())).collect(),
            locked: BTreeSet::new(),
            login_timeout: None,
        }
    }

    /// A line for each hunk, short enough for tables.
    fn told(old: &Desired, new: &Desired) -> Vec<String> {
        let rights = |sign: char, it: &Rights| {
            let lists = [
                ("p", &it.publish),
                ("p!", &it.publish_denials),
                ("s", &it.subscribe),
                ("s!", &it.subscribe_denials),
            ];
            let lists = lists.iter().filter(|(_, it)| !it.is_empty());
            let lists = lists.map(|(what, it)| {
                format!(" {sign}{what} {}", it.iter().cloned().collect::<Vec<_>>().join(","))
            });
            let answers = it.responses.map(|it| format!(" {sign}a {} {}", it.max, it.ttl_ms));
            lists.chain(answers).collect::<String>()
        };
        let hunk = |it: &Hunk| {
            let held = |it: &Option<Holding>| match it {
                None => "-".to_owned(),
                Some(Holding::Defaults) => "defaults".into(),
                Some(Holding::Role(name)) => name.to_string(),
                Some(Holding::Own) => "own".into(),
            };
            let held = format!("{}>{}", held(&it.before), held(&it.after));
            let credential = if it.credential_changed { " credential" } else { "" };
            let types = it.connection_types.as_ref().map(|[was, is]| format!(" {was:?}>{is:?}"));
            let users = it.users.join(",");
            let types = types.unwrap_or_default();
            let (gains, losses) = (rights('+', &it.gains), rights('-', &it.losses));
            format!("{:?} {users} {held}{credential}{types}{losses}{gains}", it.change)
        };
        Diff::between(old, new).hunks.iter().map(hunk).collect()
    }

    #[test]
    fn each_is_told_what_they_gain_and_lose_and_all_alike_at_once() {
        let clerk: (&str, &[&str]) = ("CLERK", &["a.>"]);
        let ann = ("ann", user("1", role("CLERK")));
        let bob = ("bob", user("2", role("CLERK")));
        let cleo = ("cleo", user("3", Grant::Defaults));
        let own = |list: &[&str]| Grant::Own(Box::new(rules(list, &[])));
        let old = desired(&[clerk], &[ann.clone(), bob.clone(), cleo.clone()]);
        let mut narrow = cleo.clone();
        narrow.1.connection_types.insert(ConnectionType::Mqtt);
        let mut defaults = old.clone();
        defaults.defaults = rules(&["PUBLIC.>", "NEWS"], &[]);
        for (new, expected) in [
            (old.clone(), vec![]),
            // A role that only changes its name.
            (
                desired(
                    &[("SALES", clerk.1)],
                    &[
                        ("ann", user("1", role("SALES"))),
                        ("bob", user("2", role("SALES"))),
                        cleo.clone(),
                    ],
                ),
                vec![],
            ),
            (
                desired(&[("CLERK", &["b"])], &[ann.clone(), bob.clone(), cleo.clone()]),
                vec!["Changed ann,bob CLERK>CLERK -p a.> +p b"],
            ),
            // One of the role's users is also new to their password, and one has another role.
            (
                desired(
                    &[("CLERK", &["b"]), ("OTHER", &["a.>"])],
                    &[
                        ("ann", user("9", role("CLERK"))),
                        ("bob", user("2", role("CLERK"))),
                        ("cleo", user("3", role("OTHER"))),
                    ],
                ),
                vec![
                    "Changed bob CLERK>CLERK -p a.> +p b",
                    "Changed ann CLERK>CLERK credential -p a.> +p b",
                    "Changed cleo defaults>OTHER -p PUBLIC.> +p a.>",
                ],
            ),
            (
                desired(&[clerk], &[ann.clone(), ("dan", bob.1.clone()), ("eve", bob.1.clone())]),
                vec![
                    "Added dan,eve ->CLERK +p a.>",
                    "Removed bob CLERK>- -p a.>",
                    "Removed cleo defaults>- -p PUBLIC.>",
                ],
            ),
            (
                desired(&[clerk], &[ann.clone(), ("bob", user("2", own(&["a.>", "c"]))), narrow]),
                vec!["Changed bob CLERK>own +p c", "Changed cleo defaults>defaults []>[\"MQTT\"]"],
            ),
            (defaults, vec!["Changed cleo defaults>defaults +p NEWS"]),
        ] {
            assert_eq!(told(&old, &new), expected, "{new:#?}");
        }
        // The defaults differ, and nobody has them.
        let mut nobody = desired(&[clerk], std::slice::from_ref(&ann));
        let before = nobody.clone();
        nobody.defaults = Rules::default();
        assert_eq!(told(&before, &nobody), ["Changed  defaults>defaults -p PUBLIC.>"]);
    }

    #[test]
    fn a_subject_is_told_only_where_it_makes_a_difference() {
        let answers = |max| Rules {
            responses: Some(Responses { max, ttl: std::time::Duration::ZERO }),
            ..Rules::default()
        };
        let of = |old: &Rules, new: &Rules| {
            let at = |it: &Rules| {
                let mut desired = desired(&[], &[("ann", user("1", Grant::Defaults))]);
                desired.defaults = it.clone();
                desired
            };
            let told = told(&at(old), &at(new)).join("; ");
            told.strip_prefix("Changed ann defaults>defaults").map_or(told.clone(), str::to_owned)
        };
        for (old, new, expected) in [
            (&["a.b"][..], &["a.>"][..], " +p a.> +s a.>"),
            (&["a.>"], &["a.b"], " -p a.> -s a.>"),
            (&["a.b", "a.>"], &["a.>"], ""),
            (&["a"], &[], " -p a -s a"),
            (&["a.>"], &["a.>", "!a.b"], " -p! a.b -s! a.b"),
            (&["a.>", "!a.b"], &["a.>"], " +p! a.b +s! a.b"),
            (&["a.>", "!a.b"], &["a.>", "!a.*"], " -p! a.* -s! a.*"),
            (&["a"], &["a", "!b"], ""),
            // A denial of what goes anyway.
            (&["a", "b"], &["a", "!b"], " -p b -s b"),
            // Allowed and denied at once.
            (&["a"], &["a", "b.c", "!b.>"], ""),
        ] {
            assert_eq!(of(&rules(old, old), &rules(new, new)), expected, "{old:?} → {new:?}");
        }
        assert_eq!(of(&answers(1), &answers(5)), " +a 5 0");
        assert_eq!(of(&answers(5), &answers(1)), " -a 5 0");
        assert_eq!(of(&Rules::default(), &answers(1)), " +a 1 0");
        assert_eq!(of(&rules(&[], &["a"]), &rules(&[], &["a q"])), " -s a");
    }

    #[test]
    fn who_only_loses_is_not_given_anything() {
        let gives = |old: &User, new: &User| {
            let at =
                |it: &User| desired(&[("A", &["a"]), ("B", &["a", "b"])], &[("x", it.clone())]);
            Diff::between(&at(old), &at(new)).gives()
        };
        let (a, b) = (user("1", role("A")), user("1", role("B")));
        assert!(gives(&a, &b) && !gives(&b, &a) && !gives(&a, &a));
        assert!(gives(&a, &user("2", role("A"))), "another password lets another in");
        let only = |types: &[ConnectionType]| User {
            connection_types: types.iter().copied().collect(),
            ..a.clone()
        };
        let (mqtt, both) = (
            only(&[ConnectionType::Mqtt]),
            only(&[ConnectionType::Mqtt, ConnectionType::Standard]),
        );
        assert!(!gives(&a, &mqtt) && gives(&mqtt, &a));
        assert!(gives(&mqtt, &both) && !gives(&both, &mqtt));
        let (nobody, one) = (desired(&[], &[]), desired(&[], &[("x", user("1", Grant::Defaults))]));
        assert!(Diff::between(&nobody, &one).gives() && !Diff::between(&one, &nobody).gives());
    }

    proptest! {
        /// Whatever becomes possible is within something that is told as gained.
        #[test]
        fn nothing_is_gained_or_lost_unsaid(
            old in prop::collection::vec("!?(a|b|\\*)(\\.(a|b|\\*|>))?", 0..5),
            new in prop::collection::vec("!?(a|b|\\*)(\\.(a|b|\\*|>))?", 0..5),
            tokens in prop::collection::vec("[abc]", 1..4),
        ) {
            fn texts(list: &[String]) -> Vec<&str> {
                list.iter().map(String::as_str).collect()
            }
            let (old, new) = (side(&texts(&old)), side(&texts(&new)));
            let subject = Subject::parse(&tokens.join(".")).unwrap();
            let may = |it: &Subjects| within(it.allow(), &subject) && !within(it.deny(), &subject);
            let (allowed, lifted) = more_in_one(&old, &new);
            let told = allowed.iter().chain(&lifted).any(|it| {
                Subject::parse(it).unwrap().covers(&subject)
            });
            prop_assert!(!may(&new) || may(&old) || told, "{old:?} {new:?} {subject}");
            if old == new {
                prop_assert!(allowed.is_empty() && lifted.is_empty());
            }
        }
    }
}
