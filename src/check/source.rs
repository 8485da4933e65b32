//! PocketBase: whether it answers, what our account may do there, and how its collections are made.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use super::Line;
use crate::{
    auth::Grant,
    causes::chain,
    options::{Options, PocketBaseOptions},
    reconcile::{Plan, ReconcileError},
    source::{
        Account, Collection, Inspection, Link, PocketBase, STATUS_COLLECTION, SourceError,
        StatusCollection, admits_any_account, no_input_for_passwords,
    },
};

/// A token that ends sooner is worth a word.
const SOON: Duration = Duration::from_hours(7 * 24);

pub(super) async fn look(
    options: &Options,
    source: &PocketBase,
    plan: &Result<Plan, ReconcileError>,
    lines: &mut Vec<Line>,
) {
    let settings = &options.pocketbase;
    let failure = match plan {
        Err(ReconcileError::Snapshot(error)) => Some(error),
        Ok(_) | Err(_) => None,
    };
    if let Some(error) = failure {
        lines.push(Line::wrong(code(error), chain(error), error.hint()));
        if matches!(error, SourceError::Unreachable { .. } | SourceError::Slow { .. }) {
            return;
        }
    }
    let inspection = source.inspect().await;
    if inspection.too_old {
        let hint = "update PocketBase; 0.23 and later have the API that pb-nats uses";
        lines.push(Line::wrong(
            "source.too_old",
            "PocketBase is older than 0.23",
            Some(hint.into()),
        ));
    }
    if failure.is_some_and(|it| !knows_us(it)) {
        return;
    }
    if failure.is_none() {
        let place = match (&settings.url, &settings.data_dir) {
            (_, Some(folder)) => format!("its database in {}", folder.display()),
            (url, None) => url.clone().unwrap_or_default(),
        };
        lines.push(Line::good("source.read", format!("PocketBase is read: {place}")));
    }
    if let Some(account) = &inspection.account {
        token(settings, account, lines);
    }
    for (collection, why) in &inspection.unheard {
        let text = format!(
            "live changes of `{collection}` do not reach pb-nats, it notices them every {:?} only: {why}",
            settings.resync_interval
        );
        lines.push(Line::doubtful("source.unheard", text, &*Link::hint(collection)));
    }
    rules(settings, &inspection, lines);
    if settings.write_status {
        lines.push(written(settings).await);
    }
    if failure.is_none() {
        schema(options, &inspection, plan.as_ref().ok(), lines);
    }
}

/// What the account may do, and for how long.
fn token(settings: &PocketBaseOptions, account: &Account, lines: &mut Vec<Line>) {
    let before = lines.len();
    if account.superuser {
        lines.push(Line::doubtful(
            "token.superuser",
            "it is a superuser's: whoever gets hold of it may read and change everything in PocketBase",
            "a service account that may read these collections will do: `pb-nats init` makes one, and \
             its token where `token_file` names a file that is not there",
        ));
    }
    if let Some(collection) = &account.also_reads {
        lines.push(Line::doubtful(
            "token.reads_more",
            format!("the account also reads records of others in `{collection}`, which it has no use for"),
            "take it out of that collection's list rule; its own collection should be for pb-nats alone",
        ));
    }
    let by_password = settings.identity.is_some();
    let left = account.expires.duration_since(SystemTime::now()).unwrap_or_default();
    // By password a new token is got before the old one ends.
    if !by_password && left < SOON {
        lines.push(Line::doubtful(
            "token.ends_soon",
            format!("it ends at {}, and nothing renews it", date(account.expires)),
            "make a lasting one: in PocketBase \"Impersonate\" on the account's page, or log in by \
             `identity` and `password_file`",
        ));
    }
    if lines.len() == before {
        let until = if by_password {
            "renewed by password".to_owned()
        } else {
            format!("good until {}", date(account.expires))
        };
        lines
            .push(Line::good("token.fine", format!("of an account that is no superuser, {until}")));
    }
}

/// Whether PocketBase can be told how it is. That is no reason not to sync.
async fn written(settings: &PocketBaseOptions) -> Line {
    let tried = match StatusCollection::open(settings) {
        Ok(mut collection) => collection.try_out().await,
        Err(error) => Err(error),
    };
    match tried {
        Ok(()) => {
            let text = format!("the account may write `{STATUS_COLLECTION}`, and is set to");
            Line::good("status.written", text)
        }
        Err(error) => {
            let text = format!("PocketBase will not show how it is: {}", chain(&error));
            Line::doubtful("status.unwritable", text, &*error.hint().unwrap_or_default())
        }
    }
}

/// Who else may read what we read, or change what people may do in NATS.
fn rules(settings: &PocketBaseOptions, inspection: &Inspection, lines: &mut Vec<Line>) {
    let before = lines.len();
    let [users, roles] = [&settings.user_collection, &settings.role_collection];
    let everybody = |it: &Option<String>| it.as_deref() == Some("");
    let of = |it: &Option<Collection>| -> Option<Collection> { it.clone() };
    let mut public: BTreeSet<&String> = inspection.public.iter().collect();
    let collections = [(users, of(&inspection.users)), (roles, of(&inspection.roles))];
    for (name, collection) in &collections {
        let open = |it: &Collection| everybody(&it.list_rule) || everybody(&it.view_rule);
        if collection.as_ref().is_some_and(open) {
            public.insert(name);
        }
    }
    for name in &public {
        let text = format!("anybody can read `{name}` without a log-in");
        let hint = format!("give `{name}` list and view rules that admit pb-nats's account only");
        if *name == roles {
            lines.push(Line::doubtful("rules.public", text, &*hint));
        } else {
            let text = format!("{text}: who may log in to NATS, and the password hashes it holds");
            lines.push(Line::wrong("rules.public", text, Some(hint)));
        }
    }
    for (name, collection) in &collections {
        let Some(collection) = collection else { continue };
        let any_account = |it: &Option<String>| it.as_deref().is_some_and(admits_any_account);
        if any_account(&collection.list_rule) || any_account(&collection.view_rule) {
            lines.push(Line::doubtful(
                "rules.any_account",
                format!("whoever has any account in PocketBase can read `{name}`"),
                "let its list and view rules admit pb-nats's account only",
            ));
        }
        for (what, rule) in [("make", &collection.create_rule), ("change", &collection.update_rule)]
        {
            let Some(rule) = rule else { continue };
            // A rule that speaks of the role has thought of who may choose it.
            if *name == users && rule.contains(&*settings.role_field) {
                continue;
            }
            let who =
                if rule.is_empty() { "anybody".into() } else { format!("whoever passes `{rule}`") };
            let text =
                format!("{who} may {what} records of `{name}`, and with them rights in NATS");
            let hint = format!(
                "leave that to superusers (no rule), or forbid it the field: \
                 `@request.body.{}:isset = false`",
                settings.role_field
            );
            let hint =
                if *name == users { hint } else { "leave that to superusers (no rule)".into() };
            lines.push(if rule.is_empty() {
                Line::wrong("rules.writable", text, Some(hint))
            } else {
                Line::doubtful("rules.writable", text, &*hint)
            });
        }
    }
    if lines.len() == before {
        lines.push(Line::good("rules.closed", "nothing of this is shown to guests"));
    }
}

/// How the collections are made. What makes a reading fail, the reading has told.
fn schema(options: &Options, inspection: &Inspection, plan: Option<&Plan>, lines: &mut Vec<Line>) {
    let before = lines.len();
    let settings = &options.pocketbase;
    if let Some(users) = &inspection.users {
        types(users, &user_types(settings), lines);
        // PocketBase itself keeps emails apart.
        if settings.username_field != "email" {
            unique(users, &settings.username_field, "", lines);
        }
        // Most have none.
        unique(users, "nkey", " WHERE `nkey` != ''", lines);
        role_field(users, options, inspection.roles.as_ref(), plan, lines);
    }
    if inspection.hashes_in_base {
        let [text, hint] = no_input_for_passwords(&settings.user_collection);
        lines.push(Line::doubtful("schema.no_password_input", text, &*hint));
    }
    if let Some(roles) = &inspection.roles {
        types(roles, &ROLE_TYPES.map(|(name, kinds)| (name, kinds)), lines);
    }
    if inspection.view == Some(false) {
        lines.push(Line::doubtful(
            "schema.no_view",
            format!(
                "there is no view `{}`, so both collections are listed: slower, and twice where there \
                 are more than 1,000 users",
                settings.export_view
            ),
            "`pb-nats init` makes it; `export_view = \"\"` does without",
        ));
    }
    if lines.len() == before {
        let known = inspection.users.is_some();
        let text = match (known, inspection.view) {
            (true, Some(true)) => {
                "the fields have the right types, and one view carries both collections"
            }
            (true, _) => "the fields have the right types",
            (false, Some(true)) => "the fields are there, and one view carries both collections",
            (false, _) => "the fields are there",
        };
        lines.push(Line::good("schema.fine", text));
    }
}

const LIST: &[&str] = &["json", "text", "editor", "select"];

const ROLE_TYPES: [(&str, &[&str]); 8] = [
    ("name", &["text", "select"]),
    ("publish_permissions", LIST),
    ("subscribe_permissions", LIST),
    ("publish_deny_permissions", LIST),
    ("subscribe_deny_permissions", LIST),
    ("allow_response", &["bool"]),
    ("allow_response_max", &["number"]),
    ("allow_response_ttl", &["number"]),
];

fn user_types(settings: &PocketBaseOptions) -> Vec<(&str, &'static [&'static str])> {
    let mut types: Vec<(&str, &'static [&'static str])> = vec![
        (&settings.username_field, &["text", "email", "select"]),
        (&settings.password_field, &["text", "password"]),
        (&settings.role_field, &["relation", "text"]),
        (&settings.active_field, &["bool"]),
        ("nkey", &["text"]),
        ("allowed_connection_types", LIST),
    ];
    types.extend(ROLE_TYPES.iter().filter(|(name, _)| name.ends_with("_permissions")));
    types
}

fn types(collection: &Collection, wanted: &[(&str, &[&str])], lines: &mut Vec<Line>) {
    for (name, kinds) in wanted {
        let Some(field) = collection.fields.iter().find(|it| it.name == *name) else { continue };
        // Superusers see an id as a text of its own kind.
        if !kinds.contains(&&*field.kind) {
            let text = format!(
                "`{name}` of `{}` is a field of the type {}, not {}",
                collection.name, field.kind, kinds[0]
            );
            let hint = format!("make a field `{name}` of the type {} instead", kinds[0]);
            lines.push(Line::wrong("schema.type", text, Some(hint)));
        }
    }
}

/// By what nats-server tells users apart. `only` says for which records.
fn unique(users: &Collection, name: &str, only: &str, lines: &mut Vec<Line>) {
    if !users.fields.iter().any(|it| it.name == name) {
        return;
    }
    let over_name = |index: &String| {
        let index = index.to_lowercase();
        let unique = index.trim_start().starts_with("create unique index");
        let columns = index.split_once(" on ").and_then(|(_, it)| it.split_once('('));
        let columns = columns.and_then(|(_, it)| it.split_once(')'));
        let bare = |it: &str| -> String {
            let word = it.split_whitespace().next().unwrap_or_default();
            word.trim_matches(['`', '"', '\'', '[', ']']).to_owned()
        };
        unique
            && columns.is_some_and(|(it, _)| bare(it) == name.to_lowercase() && !it.contains(','))
    };
    if !users.indexes.iter().any(over_name) {
        let users = &users.name;
        let hint = format!(
            "in the collection's settings: CREATE UNIQUE INDEX `idx_{users}_{name}` ON `{users}` (`{name}`){only}"
        );
        lines.push(Line::doubtful(
            "schema.no_unique_index",
            format!(
                "two records of `{users}` may have the same `{name}`, and then at most one is let in"
            ),
            &*hint,
        ));
    }
}

fn role_field(
    users: &Collection,
    options: &Options,
    roles: Option<&Collection>,
    plan: Option<&Plan>,
    lines: &mut Vec<Line>,
) {
    let name = &options.pocketbase.role_field;
    let field = users.fields.iter().find(|it| it.name == *name && it.kind == "relation");
    let Some(field) = field else { return };
    if let Some(roles) = roles.filter(|it| it.id != field.collection_id) {
        let (users, roles) = (&users.name, &roles.name);
        let text = format!("`{name}` of `{users}` refers to another collection than `{roles}`");
        let hint = format!("make it a relation to `{roles}`, or set `role_collection`");
        lines.push(Line::wrong("schema.role_elsewhere", text, Some(hint)));
    }
    let defaults_used =
        || plan.is_some_and(|it| it.desired.users.values().any(|it| it.grant == Grant::Defaults));
    let defaults = plan.map(|it| &it.desired.defaults);
    let allow = defaults.is_some_and(|it| !it.publish.is_nothing() || !it.subscribe.is_nothing());
    // Whoever has users without a role wants them to have the defaults.
    if !field.required && allow && !defaults_used() {
        lines.push(Line::doubtful(
            "schema.role_optional",
            format!(
                "`{name}` of `{}` may be empty: whoever's role is deleted gets the default permissions",
                users.name
            ),
            "make the field required (\"Nonempty\"), or set `default_publish` and `default_subscribe` \
             in [permissions] to []",
        ));
    }
}

/// Whether PocketBase, which did not tell all, knows who we are.
fn knows_us(error: &SourceError) -> bool {
    match code(error).split_once('.') {
        Some(("schema", _)) => true,
        Some(_) | None => {
            matches!(error, SourceError::Forbidden { .. } | SourceError::ViewHidden { .. })
        }
    }
}

/// The code of the line for an error.
pub(super) fn code(error: &SourceError) -> &'static str {
    match error {
        SourceError::Settings(_) => "settings.pocketbase",
        SourceError::Credentials(_) => "token.unreadable",
        SourceError::Certificates(_) => "source.certificates",
        SourceError::Unreachable { .. } => "source.unreachable",
        SourceError::Slow { .. } => "source.slow",
        SourceError::Redirected { .. } => "source.redirected",
        SourceError::Status { .. } => "source.status",
        SourceError::NotPocketBase { .. } => "source.not_pocketbase",
        SourceError::TooOld { .. } => "source.too_old",
        SourceError::Torn { .. } => "source.torn",
        SourceError::TooLarge { .. } => "source.too_large",
        SourceError::TokenRefused => "token.refused",
        SourceError::AddressRefused => "token.address_refused",
        SourceError::NoPasswordLogin { .. } => "token.no_password_login",
        SourceError::RuledOut { .. } => "token.ruled_out",
        SourceError::NoAuthCollection { .. } => "token.no_auth_collection",
        SourceError::LoginRefused { .. } => "token.login_refused",
        SourceError::NotSuperuser => "token.not_superuser",
        SourceError::SecondFactor => "token.second_factor",
        SourceError::Forbidden { .. } => "token.forbidden",
        SourceError::ViewHidden { .. } => "token.view_hidden",
        SourceError::NoCollection { .. } => "schema.no_collection",
        SourceError::Renamed { .. } => "schema.renamed",
        SourceError::Unwritable { .. } => "status.unwritable",
        SourceError::IsView { .. } => "schema.is_view",
        SourceError::NoField { .. } => "schema.no_field",
        SourceError::WrongType { .. } => "schema.wrong_type",
        SourceError::PasswordsHidden { .. } => "schema.passwords_hidden",
        SourceError::ViewUnknown { .. } => "schema.view_unknown",
        SourceError::ViewOfOther { .. } => "schema.view_of_other",
        SourceError::ViewLacks { .. } => "schema.view_lacks",
        SourceError::NoDatabase(_) => "source.no_database",
        SourceError::Database { .. } => "source.database",
        SourceError::NotPocketBaseData { .. } => "source.not_pocketbase_data",
    }
}

fn date(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time);
    time.map_or_else(|_| "some time".into(), |it| format!("{it:.0}"))
}
