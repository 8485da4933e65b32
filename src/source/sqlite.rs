//! PocketBase's database file, read without PocketBase.
//!
//! It is never opened for writing. Two states of the folder are told apart:
//!
//! - There is a `-wal` file: the database is in use, and SQLite's own locks give a reader one
//!   moment's view of it.
//! - There is none: nothing has the database open, and its file alone is everything. It is read as
//!   `immutable`, since for anything else SQLite would have to make files in the folder, which then
//!   might be ours and not PocketBase's. The reading counts only if the file was left alone
//!   meanwhile.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hash as _, Hasher, RandomState},
    io, mem,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc},
    thread,
    time::{Duration, Instant},
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use reqwest::Url;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, types::ValueRef};
use tokio::{
    sync::{Notify, watch},
    task,
};

use super::{
    Collection, Kind, Link, Source, SourceError,
    names::{ROLES_ID, likely_ids},
    record::{Before, Field, MOST_FIELDS, Names, Raw, Records, Schema, Stored},
};
use crate::{auth::Snapshot, options::PocketBaseOptions};

/// A database that is not in use may come into use while it is read; so many readings are tried.
const READINGS: usize = 6;

/// The data folder of a PocketBase on this machine.
#[derive(Debug)]
pub struct Sqlite {
    pub(super) database: Database,
    pub(super) names: Names,
    watch: Option<Watch>,
    last: Last,
}

impl Sqlite {
    pub(super) fn open(folder: &Path, options: &PocketBaseOptions) -> Sqlite {
        let database = Database { path: folder.join("data.db"), ids: Arc::default() };
        Sqlite { database, names: Names::new(options), watch: None, last: Last::default() }
    }

    pub(super) fn beside(&self) -> Sqlite {
        let (database, names) = (self.database.clone(), self.names.clone());
        Sqlite { database, names, watch: None, last: Last::default() }
    }
}

impl Source for Sqlite {
    async fn snapshot(&mut self) -> Result<Snapshot, SourceError> {
        let (database, names, last) =
            (self.database.clone(), self.names.clone(), self.last.clone());
        task::spawn_blocking(move || last.snapshot(&database, &names))
            .await
            .expect("reading a database does not panic")
    }

    async fn changed(&mut self) {
        let watch = self.watch.get_or_insert_with(|| {
            Watch::start(self.database.clone(), self.names.clone(), self.last.clone())
        });
        watch.hint.notified().await;
    }

    fn link(&self) -> watch::Receiver<Link> {
        let address = self.database.path.display().to_string();
        watch::Sender::new(Link { kind: Kind::Database, address, ..Link::default() }).subscribe()
    }
}

/// What the records were when they were last read: any program may write to the database, and most of
/// what it writes is nothing to us.
#[derive(Clone, Debug, Default)]
struct Last {
    /// Of its own for each process, so that nobody can write records that only look alike.
    print: RandomState,
    read: Arc<Mutex<Read>>,
}

#[derive(Debug, Default)]
struct Read {
    print: Option<u64>,
    before: Before,
    /// Whether there was a hint since.
    hinted: bool,
    /// Whether the hint before was for nothing.
    in_vain: bool,
}

impl Last {
    fn snapshot(&self, database: &Database, names: &Names) -> Result<Snapshot, SourceError> {
        // It takes a while, and somebody else may want to know of the rest.
        let mut before = mem::take(&mut self.read().before);
        let found = database.snapshot(names, &self.print, &before);
        if let Ok((snapshot, _)) = &found {
            before.keep(&snapshot.users);
        }
        let mut read = self.read();
        read.before = before;
        let (snapshot, print) = found?;
        let same = read.print.replace(print) == Some(print);
        if mem::take(&mut read.hinted) {
            read.in_vain = same;
        }
        Ok(snapshot)
    }

    /// Whether a commit is worth a hint. After one that was not, the records are looked at first; else
    /// there is no time to lose.
    fn is_news(&self, database: &Database, names: &Names) -> bool {
        if self.read().in_vain {
            let print = database.print(names, &self.print);
            let mut read = self.read();
            if print.is_ok_and(|it| read.print == Some(it)) {
                return false;
            }
            read.in_vain = false;
        }
        self.read().hinted = true;
        true
    }

    fn read(&self) -> MutexGuard<'_, Read> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The database file.
#[derive(Clone, Debug)]
pub(super) struct Database {
    path: PathBuf,
    /// The ids of the collections by their names, as far as they were seen.
    ids: Arc<Mutex<HashMap<String, String>>>,
}

/// A database file at one moment. One that is not in use is unchanged if this is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct File {
    device: u64,
    inode: u64,
    /// The inode of its `-wal` file. `None`: it is not in use.
    wal: Option<u64>,
    /// Size and time of the last change, of a file not in use.
    still: Option<(u64, i64, i64)>,
}

impl Database {
    fn file(&self) -> io::Result<File> {
        let mut wal = self.path.clone().into_os_string();
        wal.push("-wal");
        let wal = match fs_err::metadata(wal) {
            Ok(wal) => Some(wal.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let it = fs_err::metadata(&self.path)?;
        let still = wal.is_none().then(|| (it.size(), it.mtime(), it.mtime_nsec()));
        Ok(File { device: it.dev(), inode: it.ino(), wal, still })
    }

    /// All that the database says of a collection, if it has it.
    pub(super) fn collection(&self, name: &str) -> Option<Collection> {
        const QUERY: &str = "SELECT json_object('id', id, 'name', name, 'type', type, \
            'fields', json(fields), 'indexes', json(indexes), 'listRule', listRule, \
            'viewRule', viewRule, 'createRule', createRule, 'updateRule', updateRule) \
            FROM _collections WHERE name = ?1";
        let connection = self.connect(self.file().ok()?).ok()?;
        let text: String = connection.query_row(QUERY, [name], |row| row.get(0)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Reads until nothing came in between.
    fn whole<T>(&self, read: impl Fn(File) -> Result<T, SourceError>) -> Result<T, SourceError> {
        for _ in 0..READINGS {
            let before = self.file().map_err(SourceError::NoDatabase)?;
            let result = read(before);
            if before.wal.is_some() || self.file().is_ok_and(|after| after == before) {
                return result;
            }
        }
        Err(SourceError::Torn { readings: READINGS })
    }

    /// The records, and their print.
    fn snapshot(
        &self,
        names: &Names,
        print: &RandomState,
        before: &Before,
    ) -> Result<(Snapshot, u64), SourceError> {
        self.whole(|file| {
            let mut records = Records::new(names, before);
            let mut print = print.build_hasher();
            self.read(file, names, |table| {
                table.begin(&mut print);
                if table.of_users {
                    return self.users(table, names, &mut print, &mut records);
                }
                let columns = table.columns(&Names::of_role());
                self.each(table, |values| {
                    add(&mut print, values);
                    records.role(|at| raw_at(columns[at], values))
                })
            })?;
            Ok((records.made(), print.finish()))
        })
    }

    /// The print of the records alone, which is cheaper.
    fn print(&self, names: &Names, print: &RandomState) -> Result<u64, SourceError> {
        self.whole(|file| {
            let mut print = print.build_hasher();
            self.read(file, names, |table| {
                table.begin(&mut print);
                self.each(table, |values| {
                    add(&mut print, values);
                    Ok(())
                })
            })?;
            Ok(print.finish())
        })
    }

    /// Calls `each` for both tables, as of one moment.
    fn read(
        &self,
        file: File,
        names: &Names,
        mut each: impl FnMut(&Table<'_>) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let failed = |error| self.failed(error);
        let mut connection = self.connect(file).map_err(failed)?;
        let moment = connection.transaction().map_err(failed)?;
        let users = self.schema(&moment, &names.users)?;
        let roles = self.schema(&moment, &names.roles)?;
        let fields = names.user_fields(&users)?;
        each(&Table { connection: &moment, schema: &users, fields, of_users: true })?;
        let fields = Names::role_fields(&roles)?;
        each(&Table { connection: &moment, schema: &roles, fields, of_users: false })
    }

    /// Makes records of all users. Where there are many, that takes as long as to read them, so that
    /// another thread does it.
    fn users(
        &self,
        table: &Table<'_>,
        names: &Names,
        print: &mut (impl Hasher + Send),
        records: &mut Records<'_>,
    ) -> Result<(), SourceError> {
        let (width, columns) = (table.fields.len(), table.columns(&names.of_user()));
        let (full, filled) = mpsc::sync_channel::<Rows>(2);
        let (empty, emptied) = mpsc::channel::<Rows>();
        let take = move || {
            for mut rows in filled {
                rows.each(width, |values| {
                    add(print, values);
                    records.user(|at| raw_at(columns[at], values))
                })?;
                rows.clear();
                // Nobody may need it any more.
                let _ = empty.send(rows);
            }
            Ok(())
        };
        thread::scope(|scope| {
            let taken = thread::Builder::new().spawn_scoped(scope, take);
            let no_thread = |error: io::Error| SourceError::Database {
                path: self.path.clone(),
                source: error.into(),
            };
            let taken = taken.map_err(no_thread)?;
            let mut rows = Rows::default();
            let read = self.each(table, |values| {
                rows.add(values);
                if rows.values.len() >= Rows::MANY {
                    let next = emptied.try_recv().unwrap_or_default();
                    // If they are not taken any more, then what is wrong is told there.
                    let _ = full.send(mem::replace(&mut rows, next));
                }
                Ok(())
            });
            let _ = full.send(rows);
            drop(full);
            taken.join().expect("nothing in there panics").and(read)
        })
    }

    fn connect(&self, file: File) -> rusqlite::Result<Connection> {
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        let mut url = Url::from_file_path(path).expect("the path is absolute");
        url.set_query(Some(if file.wal.is_some() { "mode=ro" } else { "mode=ro&immutable=1" }));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Connection::open_with_flags(url.as_str(), flags)
    }

    fn schema(&self, connection: &Connection, collection: &str) -> Result<Schema, SourceError> {
        let found = connection
            .query_row(
                "SELECT name, type, fields, id FROM _collections WHERE name = ?1",
                [collection],
                |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?, row.get(3)?)),
            )
            .optional();
        let (name, kind, fields, id) = found
            .map_err(|error| self.failed(error))?
            .ok_or_else(|| self.gone(connection, collection))?;
        self.ids().insert(collection.to_owned(), id);
        let fields = serde_json::from_str(&fields)
            .map_err(|_| SourceError::NotPocketBaseData { path: self.path.clone() })?;
        Ok(Schema { name, kind, fields })
    }

    /// The error that there is no such collection; with the name that it has now, if its id tells.
    fn gone(&self, connection: &Connection, collection: &str) -> SourceError {
        let mut ids: Vec<String> = self.ids().get(collection).cloned().into_iter().collect();
        ids.extend(likely_ids(collection));
        if collection == "nats_roles" {
            ids.push(ROLES_ID.to_owned());
        }
        let now = ids.iter().find_map(|id| {
            let query = "SELECT name FROM _collections WHERE id = ?1";
            connection.query_row(query, [id], |row| row.get(0)).ok()
        });
        let collection = collection.to_owned();
        match now {
            Some(now) => SourceError::Renamed { collection, now },
            None => SourceError::NoCollection { collection },
        }
    }

    fn ids(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `each` with the values of one record after the other.
    fn each(
        &self,
        table: &Table<'_>,
        mut each: impl FnMut(&[ValueRef<'_>]) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let failed = |error| self.failed(error);
        let mut statement = table.connection.prepare(&table.query()).map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            // Each is asked for once, as there are a million of them with many records.
            let mut values = [ValueRef::Null; MOST_FIELDS];
            let values = &mut values[..table.fields.len()];
            for (place, value) in values.iter_mut().enumerate() {
                *value = row.get_ref(place).map_err(failed)?;
            }
            each(values)?;
        }
        Ok(())
    }

    fn failed(&self, error: rusqlite::Error) -> SourceError {
        let path = self.path.clone();
        match error.sqlite_error() {
            // A plain error is one of the query, as when a table is not there.
            Some(it) if it.code == ErrorCode::NotADatabase || it.extended_code == 1 => {
                SourceError::NotPocketBaseData { path }
            }
            _ => SourceError::Database { path, source: error.into() },
        }
    }
}

/// The place of a field in a row, and how it is stored.
type Column = (usize, Stored);

/// A collection in the database, and what is read of it.
struct Table<'a> {
    connection: &'a Connection,
    schema: &'a Schema,
    fields: Vec<&'a Field>,
    of_users: bool,
}

impl Table<'_> {
    fn query(&self) -> String {
        let columns: Vec<_> = self.fields.iter().map(|field| quoted(&field.name)).collect();
        format!("SELECT {} FROM {}", columns.join(", "), quoted(&self.schema.name))
    }

    /// Where the fields that are `wanted` are, and how they are stored.
    fn columns(&self, wanted: &[&str]) -> Vec<Option<Column>> {
        let column = |name: &&str| {
            let place = self.fields.iter().position(|it| it.name == *name)?;
            Some((place, self.fields[place].stored()))
        };
        wanted.iter().map(column).collect()
    }

    /// What its rows are goes into a print before them.
    fn begin(&self, print: &mut impl Hasher) {
        (self.query(), &self.schema.kind).hash(print);
    }
}

/// Adds a row to a print. Each value begins with what it is, and text with its length: in one number,
/// as this is done a million times.
fn add(print: &mut impl Hasher, values: &[ValueRef<'_>]) {
    for value in values {
        match *value {
            ValueRef::Null => print.write_u64(0),
            ValueRef::Integer(number) => (1_u64, number).hash(print),
            ValueRef::Real(number) => (2_u64, number.to_bits()).hash(print),
            ValueRef::Text(text) | ValueRef::Blob(text) => {
                let blob = u64::from(matches!(value, ValueRef::Blob(_)));
                print.write_u64((text.len() as u64) << 3 | 4 | blob);
                print.write(text);
            }
        }
    }
}

/// Rows on the way from one thread to another.
#[derive(Default)]
struct Rows {
    values: Vec<Held>,
    /// All of their text.
    text: Vec<u8>,
}

/// A value, or how much of the text it is.
#[derive(Clone, Copy)]
enum Held {
    Null,
    Integer(i64),
    Real(f64),
    Text(usize),
    Blob(usize),
}

impl Rows {
    /// So many values are worth handing over.
    const MANY: usize = 4096;

    fn add(&mut self, row: &[ValueRef<'_>]) {
        for value in row {
            self.values.push(match *value {
                ValueRef::Null => Held::Null,
                ValueRef::Integer(number) => Held::Integer(number),
                ValueRef::Real(number) => Held::Real(number),
                ValueRef::Text(text) => {
                    self.text.extend_from_slice(text);
                    Held::Text(text.len())
                }
                ValueRef::Blob(bytes) => {
                    self.text.extend_from_slice(bytes);
                    Held::Blob(bytes.len())
                }
            });
        }
    }

    /// Calls `each` with the values of one row after the other.
    fn each<E>(
        &self,
        width: usize,
        mut each: impl FnMut(&[ValueRef<'_>]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut text = &*self.text;
        let mut next = |length| {
            let (it, rest) = text.split_at(length);
            text = rest;
            it
        };
        for row in self.values.chunks_exact(width) {
            let mut values = [ValueRef::Null; MOST_FIELDS];
            for (value, held) in values.iter_mut().zip(row) {
                *value = match *held {
                    Held::Null => ValueRef::Null,
                    Held::Integer(number) => ValueRef::Integer(number),
                    Held::Real(number) => ValueRef::Real(number),
                    Held::Text(length) => ValueRef::Text(next(length)),
                    Held::Blob(length) => ValueRef::Blob(next(length)),
                };
            }
            each(&values[..width])?;
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.values.clear();
        self.text.clear();
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What a row has in a column.
fn raw_at<'v>(column: Option<Column>, values: &[ValueRef<'v>]) -> Option<Raw<'v>> {
    column.map(|(place, stored)| raw(values[place], stored))
}

/// The value of a column, as the API would show it.
fn raw(value: ValueRef<'_>, stored: Stored) -> Raw<'_> {
    match (value, stored) {
        (ValueRef::Null, _) | (ValueRef::Text(b"") | ValueRef::Blob(b""), Stored::Json) => {
            Raw::NULL
        }
        (ValueRef::Integer(number), Stored::Bool) => Raw::Value((number != 0).into()),
        (ValueRef::Integer(number), Stored::AsIs | Stored::Json) => Raw::Value(number.into()),
        (ValueRef::Real(number), _) => Raw::Value(number.into()),
        (ValueRef::Text(text) | ValueRef::Blob(text), _) => match (str::from_utf8(text), stored) {
            (Ok(text), Stored::Json) => Raw::Json(text),
            (Ok(text), Stored::AsIs | Stored::Bool) => Raw::Text(text),
            (Err(_), _) => Raw::Value(String::from_utf8_lossy(text).into()),
        },
    }
}

/// The thread that looks for commits. It ends soon after this is dropped.
#[derive(Debug)]
struct Watch {
    hint: Arc<Notify>,
    _wake: mpsc::Sender<()>,
    _files: Option<Arc<Mutex<RecommendedWatcher>>>,
}

/// How often to look if the file system tells nothing.
///
/// One look takes microseconds, so four in a second cost nothing; a look every 10 ms, which would
/// do without the file system's word, costs 0.7 % of a core.
const PERIOD: Duration = Duration::from_millis(250);

/// A write is told before it can be seen, so after each one looks so often are in such a row.
const LOOKS: u32 = 25;
const MOMENT: Duration = Duration::from_millis(2);

/// To see that a commit was nothing to us may take so much of the time: one part of so many. What was
/// not used of it counts, for as long as this, so that only who writes all the time makes us rest.
const REST: u32 = 32;
const LONGEST_REST: Duration = Duration::from_secs(10);

impl Watch {
    fn start(database: Database, names: Names, last: Last) -> Watch {
        let hint = Arc::new(Notify::new());
        let (wake, woken) = mpsc::channel();
        let files = watcher(&database.path, wake.clone())
            .inspect_err(|error| tracing::debug!(%error, "the file system tells no changes"));
        let files = files.ok().map(|it| Arc::new(Mutex::new(it)));
        let told = files.as_ref().map(Arc::downgrade).unwrap_or_default();
        let mut looks = Looks { database: database.clone(), open: None, opened: 0 };
        let leave = hint.clone();
        thread::spawn(move || {
            let mut seen = None;
            let mut left = 0_u32;
            let ago = |now: Instant| now.checked_sub(LONGEST_REST).unwrap_or(now);
            let mut rested = ago(Instant::now());
            loop {
                let now = looks.look();
                // Of what was before the first look, nobody knows.
                if seen.replace(now) != Some(now) {
                    let begun = Instant::now();
                    if last.is_news(&database, &names) {
                        leave.notify_one();
                    } else {
                        let now = Instant::now();
                        let took = ((now - begun) * REST).min(LONGEST_REST);
                        rested = rested.max(ago(begun)) + took;
                        if rested > now {
                            // Somebody may write all the time, and to be told of each costs as much.
                            with(&told, |it| it.unwatch(folder(&database.path)));
                            #[expect(
                                clippy::disallowed_methods,
                                reason = "nothing else runs here"
                            )]
                            thread::sleep(rested - now);
                            with(&told, |it| listen(it, &database.path));
                            while woken.try_recv().is_ok() {}
                        }
                        left = LOOKS;
                        continue;
                    }
                }
                let patience = if left > 0 { MOMENT } else { PERIOD };
                match woken.recv_timeout(patience) {
                    Ok(()) => left = LOOKS,
                    Err(mpsc::RecvTimeoutError::Timeout) => left = left.saturating_sub(1),
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        Watch { hint, _wake: wake, _files: files }
    }
}

/// Wakes the thread when something is written to the database's files, and not for the logs in the
/// same folder.
fn watcher(path: &Path, wake: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let names = ["data.db", "data.db-wal"].map(std::ffi::OsStr::new);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        let ours =
            event.paths.iter().any(|it| it.file_name().is_some_and(|it| names.contains(&it)));
        if ours && !matches!(event.kind, EventKind::Access(_)) {
            // The thread is there as long as its wakers.
            let _ = wake.send(());
        }
    })?;
    listen(&mut watcher, path)?;
    Ok(watcher)
}

/// Does this with the watcher, if there still is one. What fails leaves the looks every now and then.
fn with(
    watcher: &Weak<Mutex<RecommendedWatcher>>,
    act: impl FnOnce(&mut RecommendedWatcher) -> notify::Result<()>,
) {
    if let Some(watcher) = watcher.upgrade() {
        let done = act(&mut watcher.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = done {
            tracing::debug!(%error, "the file system tells no changes");
        }
    }
}

fn listen(watcher: &mut RecommendedWatcher, path: &Path) -> notify::Result<()> {
    watcher.watch(folder(path), RecursiveMode::NonRecursive)
}

fn folder(path: &Path) -> &Path {
    path.parent().expect("the path ends with a file name")
}

/// What a look at the database sees. A difference is a change.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    Nothing,
    Still(File),
    /// Connections count versions each in their own way.
    Live {
        opened: u64,
        version: i64,
    },
}

struct Looks {
    database: Database,
    open: Option<(File, Connection)>,
    opened: u64,
}

impl Looks {
    fn look(&mut self) -> Seen {
        let Ok(file) = self.database.file() else {
            self.open = None;
            return Seen::Nothing;
        };
        if file.wal.is_none() {
            self.open = None;
            return Seen::Still(file);
        }
        // A restore puts other files in place of those that are open.
        if self.open.as_ref().is_none_or(|(open, _)| *open != file) {
            self.opened += 1;
            self.open = self.database.connect(file).ok().map(|connection| (file, connection));
        }
        let version = self.open.as_ref().and_then(|(_, connection)| {
            connection.query_row("PRAGMA data_version", [], |row| row.get(0)).ok()
        });
        match version {
            Some(version) => Seen::Live { opened: self.opened, version },
            None => Seen::Nothing,
        }
    }
}
