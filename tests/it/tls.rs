//! Whom we trust: PocketBase and nats-server behind TLS.

use std::{
    fs, io,
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use async_nats::{ConnectErrorKind, ConnectOptions};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    PB_NATS,
    middlebox::read_request,
    support::{Nats, Output, Pb, PbNats, SYSTEM_ACCOUNT, SYSTEM_USER, Setup, eventually, write},
};

const PASSWORD: &str = "open sesame";
const HERE: &str = "127.0.0.1";
/// The last year of a certificate that is good.
const LASTING: i32 = 2999;

/// A PocketBase with ann in it, behind TLS.
struct Town {
    pb: Pb,
    ann: String,
    authority: Authority,
}

impl Town {
    fn new() -> Town {
        let pb = Pb::start();
        let ann = pb.user("ann", PASSWORD, "");
        Town { pb, ann, authority: Authority::new("ours") }
    }

    /// PocketBase with a certificate for this host, and a pb-nats that has never heard of its
    /// authority.
    fn behind_tls(&self, nats: &Nats, host: &str, year: i32) -> (Front, PbNats) {
        let front = Front::start(self.pb.address(), self.authority.certify(host, year));
        let mut pb_nats = PbNats::between(PB_NATS, &self.pb, nats);
        pb_nats.set("pocketbase.url", front.url());
        trust(&mut pb_nats, &Authority::new("the system's"));
        (front, pb_nats)
    }
}

#[test]
fn an_authority_that_the_system_trusts_is_trusted_and_changes_arrive_at_once() {
    let (town, nats) = (Town::new(), Nats::start());
    let (_front, mut pb_nats) = town.behind_tls(&nats, HERE, LASTING);
    trust(&mut pb_nats, &town.authority);
    pb_nats.once().success();
    assert!(nats.accepts("ann", PASSWORD) && !nats.accepts("ann", "wrong"));

    pb_nats.set("pocketbase.resync_interval", "1h");
    pb_nats.set("sync.debounce", "10ms");
    let _running = pb_nats.run();
    // The start and a new live connection are reasons to look, so only the third change needs one.
    for active in [false, true, false, true] {
        town.pb.update("nats_users", &town.ann, &json!({"active": active}));
        eventually("it is noticed", || (nats.accepts("ann", PASSWORD) == active).then_some(()));
    }
}

#[test]
fn an_unknown_authority_changes_nothing_until_ca_file_names_it() {
    let (town, nats) = (Town::new(), Nats::start());
    let (_front, mut pb_nats) = town.behind_tls(&nats, HERE, LASTING);
    write(pb_nats.dir().join("ca.pem"), town.authority.pem());
    pb_nats.set("pocketbase.ca_file", "ca.pem");
    pb_nats.once().success();
    town.pb.update("nats_users", &town.ann, &json!({"active": false}));

    pb_nats.unset("pocketbase.ca_file");
    let before = fs::read_to_string(nats.auth_file()).unwrap();
    let refused = refused(&pb_nats, "UnknownIssuer");
    assert!(refused.stderr.contains("cause: PocketBase at `https://127.0.0.1:"), "{refused:?}");
    assert!(refused.stderr.contains("`ca_file`"), "{refused:?}");
    assert_eq!(fs::read_to_string(nats.auth_file()).unwrap(), before);
    assert!(nats.accepts("ann", PASSWORD), "the last good state stays");

    pb_nats.set("pocketbase.ca_file", "ca.pem");
    pb_nats.once().success();
    assert!(!nats.accepts("ann", PASSWORD));
}

#[test]
fn a_certificate_counts_only_in_its_time_and_for_its_host() {
    let (town, nats) = (Town::new(), Nats::start());
    for (host, year, problem) in
        [(HERE, 2001, "certificate expired"), ("pb.example", LASTING, "not valid for name")]
    {
        let (_front, mut pb_nats) = town.behind_tls(&nats, host, year);
        trust(&mut pb_nats, &town.authority);
        let refused = refused(&pb_nats, problem);
        assert!(refused.stderr.contains("the host in `url`"), "{refused:?}");
        assert!(!nats.accepts("ann", PASSWORD));
    }
    let (_front, mut pb_nats) = town.behind_tls(&nats, HERE, LASTING);
    trust(&mut pb_nats, &town.authority);
    pb_nats.once().success();
    assert!(nats.accepts("ann", PASSWORD));
}

/// A file without certificates would else be noticed as an unknown authority, if at all.
#[test]
fn a_ca_file_that_is_not_there_or_holds_no_certificate_is_named() {
    let (town, nats) = (Town::new(), Nats::start());
    let (_front, mut pb_nats) = town.behind_tls(&nats, HERE, LASTING);
    let ca = pb_nats.dir().join("ca.pem");
    let (path, key) = (ca.display().to_string(), KeyPair::generate().unwrap().serialize_pem());
    let broken = town.authority.pem().replace("MII", "!!!");
    pb_nats.set("pocketbase.ca_file", "ca.pem");
    for text in [None, Some(""), Some("not PEM"), Some(&*key), Some(&*broken)] {
        if let Some(text) = text {
            write(&ca, text);
        }
        let output = pb_nats.once().exits(1);
        assert!(output.stderr.contains(&path), "{text:?}: {output:?}");
        assert!(output.stderr.contains("hint: `ca_file` must be a PEM file"), "{output:?}");
    }
    write(&ca, town.authority.pem());
    pb_nats.once().success();
}

/// As in a container with nothing but us in it.
#[test]
fn a_system_without_authorities_does_for_http_and_for_ca_file() {
    let (town, nats) = (Town::new(), Nats::start());
    let (front, mut pb_nats) = town.behind_tls(&nats, HERE, LASTING);
    pb_nats.set_env("SSL_CERT_FILE", "/dev/null");
    pb_nats.set("pocketbase.url", town.pb.url());
    pb_nats.once().success();
    assert!(nats.accepts("ann", PASSWORD));

    pb_nats.set("pocketbase.url", front.url());
    let lacking = pb_nats.once().exits(1);
    assert!(lacking.stderr.contains("the package `ca-certificates`"), "{lacking:?}");
    write(pb_nats.dir().join("ca.pem"), town.authority.pem());
    pb_nats.set("pocketbase.ca_file", "ca.pem");
    pb_nats.once().success();
}

#[test]
fn the_system_account_is_reached_over_tls() {
    let (town, nats) = (Town::new(), TlsNats::start());
    let mut pb_nats = PbNats::between(PB_NATS, &town.pb, &nats.server);
    pb_nats.unset("nats.pid_file");
    pb_nats.unset("nats.monitor_url");
    pb_nats.set("nats.system_url", format!("tls://{}", nats.server.address));
    pb_nats.set("nats.system_user", SYSTEM_USER.0);
    pb_nats.set("nats.system_password", SYSTEM_USER.1);
    trust(&mut pb_nats, &town.authority);
    let refused = refused(&pb_nats, "UnknownIssuer");
    assert!(refused.stderr.contains("cannot connect to the system account"), "{refused:?}");
    assert!(refused.stderr.contains("SSL_CERT_FILE"), "{refused:?}");
    assert!(!nats.accepts("ann"));

    trust(&mut pb_nats, &nats.authority);
    pb_nats.once().success();
    assert!(nats.accepts("ann"));
}

#[test]
fn a_monitor_is_asked_over_https() {
    let (town, nats) = (Town::new(), TlsNats::start());
    let mut pb_nats = PbNats::between(PB_NATS, &town.pb, &nats.server);
    pb_nats.set("nats.monitor_url", format!("https://{}", nats.server.monitor));
    trust(&mut pb_nats, &town.authority);
    let refused = refused(&pb_nats, "UnknownIssuer");
    assert!(refused.stderr.contains(&format!("cannot ask {}", nats.server.monitor)), "{refused:?}");
    assert!(refused.stderr.contains("SSL_CERT_FILE"), "{refused:?}");

    trust(&mut pb_nats, &nats.authority);
    let output = pb_nats.once().success();
    assert!(output.stdout.contains("in step, shown by the digest of its config"), "{output:?}");
    assert!(nats.accepts("ann"));
}

/// Makes this authority the only one that the system knows.
fn trust(pb_nats: &mut PbNats, authority: &Authority) {
    let file = pb_nats.dir().join("system.pem");
    write(&file, authority.pem());
    pb_nats.set_env("SSL_CERT_FILE", file.to_str().unwrap());
    pb_nats.set_env("SSL_CERT_DIR", "");
}

/// Asserts that a pass fails because of a certificate, and says so.
#[track_caller]
fn refused(pb_nats: &PbNats, problem: &str) -> Output {
    let output = pb_nats.once().exits(1);
    let lines: Vec<_> = output.stderr.lines().collect();
    let told = |it: &&str| it.contains("invalid peer certificate: ") && it.contains(problem);
    assert_eq!(lines.iter().filter(|it| told(it)).count(), 1, "{problem}: {output:?}");
    assert!(lines.last().unwrap().starts_with("hint: "), "{output:?}");
    output
}

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Authority {
        let mut wanted = CertificateParams::default();
        wanted.distinguished_name.push(DnType::CommonName, name);
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(wanted, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for this host, until the beginning of this year, and its key.
    fn certify(&self, host: &str, year: i32) -> (Certificate, KeyPair) {
        let mut wanted = CertificateParams::new([host.to_owned()]).unwrap();
        wanted.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        (wanted.signed_by(&key, &self.0).unwrap(), key)
    }
}

/// A nats-server that takes clients, and is asked what it runs, over TLS only.
struct TlsNats {
    server: Nats,
    authority: Authority,
    files: TempDir,
}

impl TlsNats {
    fn start() -> TlsNats {
        let (authority, files) = (Authority::new("theirs"), TempDir::new().unwrap());
        let (certificate, key) = authority.certify(HERE, LASTING);
        let file = |name: &str, text: String| {
            let path = files.path().join(name);
            write(&path, text);
            path.display().to_string()
        };
        let (certificate, key) =
            (file("cert.pem", certificate.pem()), file("key.pem", key.serialize_pem()));
        file("ca.pem", authority.pem());
        // The last `http` counts, and this one is none.
        let extra = format!(
            "http: \"{HERE}:0\"\nhttps: \"{HERE}:-1\"\n\
             tls {{ cert_file: {certificate:?}, key_file: {key:?} }}\n{SYSTEM_ACCOUNT}"
        );
        let server = Nats::with(Setup { extra: &extra, ..Setup::default() });
        TlsNats { server, authority, files }
    }

    fn accepts(&self, user: &str) -> bool {
        let options = ConnectOptions::with_user_and_password(user.into(), PASSWORD.into())
            .add_root_certificates(self.files.path().join("ca.pem"))
            .require_tls(true);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        match runtime.block_on(options.connect(self.server.address.to_string())) {
            Ok(_) => true,
            Err(error) if error.kind() == ConnectErrorKind::AuthorizationViolation => false,
            Err(error) => panic!("the server neither lets in nor refuses: {error}"),
        }
    }
}

/// What ends TLS in front of PocketBase.
struct Front {
    address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Front {
    fn start(upstream: SocketAddr, (certificate, key): (Certificate, KeyPair)) -> Front {
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.into()], key.into());
        let config = Arc::new(config.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let connection = ServerConnection::new(config.clone()).unwrap();
                let client = StreamOwned::new(connection, client.unwrap());
                thread::spawn(move || serve(client, upstream));
            }
        });
        Front { address, over }
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// Deals with one request. Nobody minds if the connection breaks on the way.
fn serve(mut client: StreamOwned<ServerConnection, TcpStream>, upstream: SocketAddr) -> Option<()> {
    let request = read_request(&mut client)?.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let mut server = TcpStream::connect(upstream).ok()?;
    server.write_all(request.as_bytes()).ok()?;
    io::copy(&mut server, &mut client).ok()?;
    client.conn.send_close_notify();
    client.flush().ok()
}
