//! The status page and PocketBase's dashboard in a real browser, and the metrics and alert rules before Prometheus' own judge.

mod dashboard;

use std::{
    fs,
    io::{self, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::{
    cargo,
    support::{Nats, Pb, PbNats, Process, Running, Signal, free_address, http, poll, write},
    tools,
};

/// Within this, the page has to show what is.
const SOON: Duration = Duration::from_secs(30);

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/prometheus/pb-nats.rules.yml");
const RULES_TEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pb-nats.rules.test.yml");
const DASHBOARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/grafana/pb-nats.json");

/// Drives the page and the dashboard in Chromium, and shows Prometheus the metrics and rules.
pub(crate) fn run() -> Result<()> {
    tools::install()?;
    let pb = Pb::start();
    let nats = Nats::start();
    let writer = pb.role("writer", &["news.>"], &["news.>", "_INBOX.>"]);
    let ann = pb.user("ann", "ann-password", &writer);
    pb.user("bob", "bob-password", &pb.role("reader", &[], &["news.>"]));
    pb.create("nats_users", &json!({ "username": "c<b>leo", "active": true }));
    let binary = cargo::build()?;
    let mut pb_nats = PbNats::between(&binary, &pb, &nats);
    let address = free_address();
    pb_nats.set("admin.listen", address.to_string());
    pb_nats.set("nats.reload_timeout", "1s");
    pb_nats.set("sync.max_removed", 0);
    pb_nats.set("sync.min_removed", 1);
    let running = pb_nats.run();
    running.wait_for(|it| it.contains("status at http://"));
    let world = World { pb, nats, pb_nats, running, ann, writer, url: format!("http://{address}") };
    world.please_prometheus()?;
    if let (Some(promtool), Some(prometheus)) = (of_debian("promtool"), of_debian("prometheus")) {
        cargo::run(Command::new(&promtool).args(["check", "rules", RULES]))?;
        cargo::run(Command::new(promtool).args(["test", "rules", RULES_TEST]))?;
        world.please_dashboard(Command::new(prometheus))?;
    } else {
        println!("skipped, since there is no Prometheus: the alert rules and the dashboard");
    }
    if cargo::there("chromedriver") {
        world.please_chromium()?;
        dashboard::makes_users(&binary)?;
    } else {
        println!(
            "skipped, since there is no chromedriver: the page and the dashboard in a browser"
        );
    }
    Ok(())
}

/// A program of Prometheus. Where it is not installed, it is taken out of its Debian package: that way
/// no service is started.
fn of_debian(program: &str) -> Option<PathBuf> {
    if cargo::there(program) {
        return Some(program.into());
    }
    let folder = tools::target_folder().ok()?.join("prometheus");
    let program = folder.join("usr/bin").join(program);
    if !cargo::there(&program) {
        fs::create_dir_all(&folder).ok()?;
        let mut apt = Command::new("apt-get");
        apt.args(["download", "--quiet", "prometheus"]).current_dir(&folder).output().ok()?;
        let files = fs::read_dir(&folder).ok()?.filter_map(|it| Some(it.ok()?.path()));
        let package = files.into_iter().find(|it| it.extension().is_some_and(|it| it == "deb"))?;
        Command::new("dpkg-deb").arg("--extract").args([&package, &folder]).output().ok()?;
    }
    cargo::there(&program).then_some(program)
}

/// What has less contrast than people need: 4.5 to 1.
const FAINT: &str = "
    const light = color => {
      const part = it => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4;
      const [red, green, blue] = color.match(/[\\d.]+/g).map(it => part(it / 255));
      return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ground = it => {
      const color = getComputedStyle(it).backgroundColor;
      return color === 'rgba(0, 0, 0, 0)' ? ground(it.parentElement) : color;
    };
    const faint = [];
    for (const it of document.body.querySelectorAll('*')) {
      if (it.matches('script, option, [hidden] *, svg :not(text)') || !(it.innerText || it.placeholder || it.textContent)) continue;
      const style = getComputedStyle(it, it.placeholder ? '::placeholder' : null);
      const [one, other] = [it.matches('text') ? style.fill : style.color, ground(it)].map(light);
      const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
      if (contrast < 4.5) faint.push(it.outerHTML.slice(0, 100) + ': ' + contrast);
    }
    return faint";

/// A pb-nats at work, and where it tells how it is.
struct World {
    pb: Pb,
    nats: Nats,
    pb_nats: PbNats,
    running: Running,
    ann: String,
    writer: String,
    url: String,
}

impl World {
    /// What reads `OpenMetrics` is Prometheus' client for Python: promtool reads the older format only.
    fn please_prometheus(&self) -> Result<()> {
        let in_step = || self.metrics().ok().filter(|it| it.contains("\npb_nats_in_step 1"));
        let metrics = poll(SOON, in_step).context("the metrics never say that all is in step")?;
        let folder = tools::target_folder()?.join("prometheus-client");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        pip.args(["--root-user-action=ignore", "--target"]).arg(&folder);
        pip.arg("prometheus-client==0.22.1");
        if !folder.is_dir() && !pip.output().is_ok_and(|it| it.status.success()) {
            println!(
                "skipped, since pip has no prometheus-client: whether the metrics can be read"
            );
            return Ok(());
        }
        let program = "import sys; from prometheus_client.openmetrics import parser; \
                       families = list(parser.text_fd_to_metric_families(sys.stdin)); \
                       print(' ', len(families), 'families of metrics'); \
                       sys.exit(len(families) < 10)";
        let mut python = Command::new("python3");
        python.args(["-c", program]).env("PYTHONPATH", &folder).stdin(Stdio::piped());
        let mut python = python.spawn()?;
        python.stdin.take().context("stdin is piped")?.write_all(metrics.as_bytes())?;
        ensure!(python.wait()?.success(), "the metrics are no OpenMetrics:\n{metrics}");
        Ok(())
    }

    /// Every query of the dashboard has an answer in a Prometheus that looks at this pb-nats, with the
    /// labels that are shown, and every alert can be evaluated there.
    fn please_dashboard(&self, mut prometheus: Command) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (address, config) = (free_address(), folder.path().join("prometheus.yml"));
        let target = self.url.trim_start_matches("http://");
        let settings = json!({
            "global": { "scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s" },
            "rule_files": [RULES],
            "scrape_configs": [{ "job_name": "pb-nats", "static_configs": [{ "targets": [target] }] }],
        });
        // JSON is YAML, too.
        write(&config, settings.to_string());
        prometheus.arg(format!("--config.file={}", config.display()));
        prometheus.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        prometheus.arg(format!("--web.listen-address={address}")).arg("--log.level=error");
        let _prometheus = Process::start(&mut prometheus);
        let ask = |what: &str, query: &str| -> Result<Value> {
            let url = format!("http://{address}/api/v1/{what}");
            let mut answer = http().get(url).query("query", query).call()?;
            Ok(answer.body_mut().read_json()?)
        };
        poll(SOON, || ask("query", "up").ok()).context("Prometheus does not answer")?;
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(DASHBOARD)?)?;
        let panels = dashboard["panels"].as_array().context("a dashboard has panels")?;
        let targets = panels.iter().flat_map(|it| it["targets"].as_array().into_iter().flatten());
        let mut queries = 0;
        for target in targets {
            let query = target["expr"].as_str().context("a target has an expression")?;
            // As Grafana fills them in.
            let filled = query.replace("$instance", ".*").replace("$__rate_interval", "1m");
            let answered = || {
                let answer = ask("query", &filled).ok()?;
                answer["data"]["result"].get(0).cloned().or_else(|| answer.get("error").cloned())
            };
            let first = poll(SOON, answered).with_context(|| format!("no answer to {query}"))?;
            ensure!(first.is_object(), "{query}: {first}");
            let shown = target["legendFormat"].as_str().unwrap_or_default();
            for label in shown.split("{{").skip(1).filter_map(|it| it.split("}}").next()) {
                ensure!(first["metric"][label].is_string(), "{query} has no label {label}");
            }
            queries += 1;
        }
        ensure!(queries > 10, "the dashboard has {queries} queries");
        let judged = || {
            let rules = ask("rules", "").ok()?["data"]["groups"][0]["rules"].take();
            let done = |it: &Value| it["health"] != "unknown";
            rules.as_array().filter(|it| it.iter().all(done)).cloned()
        };
        let rules = poll(SOON, judged).context("the alert rules are never evaluated")?;
        ensure!(rules.len() > 5 && rules.iter().all(|it| it["health"] == "ok"), "{rules:#?}");
        println!("  seen: an answer to each of {queries} queries, and {} alerts", rules.len());
        Ok(())
    }

    fn metrics(&self) -> Result<String> {
        Ok(http().get(format!("{}/metrics", self.url)).call()?.body_mut().read_to_string()?)
    }

    fn please_chromium(&self) -> Result<()> {
        let browser = Browser::start()?;
        browser.goes_to(&format!("{}/", self.url))?;
        browser.sees("the page says that all is in force", "sentence.className === 'in_step'")?;
        browser
            .sees("a name is text, whatever is in it", "records.innerText.includes('c<b>leo')")?;
        let source = "document.getElementById('source').innerText.includes";
        browser.sees("when the next pass is", &format!("{source}('Next pass')"))?;
        browser.stands_still()?;

        browser.does("window.link = document.querySelector('#records a'); link.focus()")?;
        self.pb.update(
            "nats_roles",
            &self.writer,
            &json!({ "publish_permissions": ["letters.>"] }),
        );
        browser.sees("a change shows by itself", "changes.innerText.includes('1 role changed')")?;
        browser.sees(
            "and that it is in force",
            "changes.firstChild.innerText.includes('in force after')",
        )?;
        browser.sees("who is at a link stays there", "document.activeElement === link")?;
        self.pb.create("nats_users", &json!({ "username": "aaron", "active": true }));
        browser.sees("a finding shows by itself", "records.innerText.includes('aaron')")?;
        browser.sees("and who is at another", "document.activeElement.href === link.href")?;

        let asked = |user: &str, action: &str, subject: &str| {
            let words = [json!(user), json!(action), json!(subject)].map(|it| it.to_string());
            let [user, action, subject] = words;
            browser.does(&format!(
                "const $ = id => document.getElementById(id); $('user').value = {user}; \
                 $('action').value = {action}; $('subject').value = {subject}; \
                 $('who').requestSubmit()"
            ))
        };
        asked("ann", "pub", "letters.1")?;
        browser.sees("who may, and why", "answer.innerText.includes('publish_permissions[0]')")?;
        asked("anm", "pub", "letters.1")?;
        browser
            .sees("whom one may have meant", "answer.innerText.includes('did you mean \"ann\"')")?;
        asked("ann", "pub", "")?;
        browser.sees("all that one may", "answer.innerText.includes('letters.>')")?;
        asked("", "sub", "news.1")?;
        browser.sees("all who may", "answer.innerText.includes('2 of 2 users may subscribe')")?;
        browser.does("document.getElementById('user').focus()")?;
        browser.sees("names to pick from", "names.children.length === 4")?;
        for (name, width, scheme) in
            [("light", 1200, "light"), ("dark", 1200, "dark"), ("phone", 390, "dark")]
        {
            browser.looks(name, width, scheme)?;
        }
        browser.is_told()?;

        let pid = fs::read_to_string(self.nats.pid_file())?;
        write(self.nats.pid_file(), "nobody");
        self.pb.update("nats_roles", &self.writer, &json!({ "publish_permissions": ["news.>"] }));
        browser.sees("a failing reload turns it red", "sentence.className === 'not_in_step'")?;
        browser.sees("and what to do", "hint.innerText.startsWith('What to do: ')")?;
        browser.looks("failing", 1200, "light")?;
        write(self.nats.pid_file(), &pid);
        browser.sees("and mended, it is as before", "sentence.className === 'in_step'")?;
        browser.has_behaved(&self.url)?;

        self.pb.update("nats_users", &self.ann, &json!({ "active": false }));
        browser.sees(
            "who would go, while that is held back",
            "!it('held').hidden && sentence.className === 'not_in_step' && it('held').innerText.includes('ann')",
        )?;
        browser.looks("held-back", 1200, "light")?;
        browser.looks("held-back-phone", 390, "light")?;
        self.pb.update("nats_users", &self.ann, &json!({ "active": true }));
        browser.sees("and nobody does", "it('held').hidden && sentence.className === 'in_step'")?;

        browser.does(
            "window.red = 0; window.former = events; new MutationObserver(() => { \
             red += document.getElementById('sentence').className !== 'in_step' \
             }).observe(document.body, { subtree: true, attributes: true })",
        )?;
        let address = self.url.trim_start_matches("http://");
        // As many as are let in at once: the page's own connection has to go.
        let crowd = (0..64).map(|_| TcpStream::connect(address)).collect::<io::Result<Vec<_>>>()?;
        browser.sees(
            "it makes its connection again",
            "events !== former && events.readyState === 1",
        )?;
        browser.sees("and says nothing of it", "red === 0")?;
        drop(crowd);

        self.running.signal(Signal::STOP);
        browser
            .sees("that nothing is heard turns it red", "sentence.className === 'not_in_step'")?;
        self.running.signal(Signal::CONT);
        browser.sees("until it is heard again", "sentence.className === 'in_step'")?;
        self.running.terminate();
        browser.sees("so it is while pb-nats is away", "sentence.className === 'not_in_step'")?;
        let _running = self.pb_nats.run();
        browser.sees("until it is back", "sentence.className === 'in_step'")
    }
}

/// A Chromium with one page, gone when dropped.
struct Browser {
    session: String,
    _driver: Process,
}

impl Browser {
    fn start() -> Result<Browser> {
        let address = free_address();
        let mut driver = Command::new("chromedriver");
        driver.arg(format!("--port={}", address.port())).stdout(Stdio::null());
        let driver = Process::start(&mut driver);
        let url = format!("http://{address}");
        let up = || http().get(format!("{url}/status")).call().ok();
        poll(SOON, up).context("chromedriver does not answer")?;
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"] },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        }}});
        let session = post(&format!("{url}/session"), &wanted)?;
        let id = session["sessionId"].as_str().context("a session has an id")?;
        Ok(Browser { session: format!("{url}/session/{id}"), _driver: driver })
    }

    fn order(&self, what: &str, details: &Value) -> Result<Value> {
        post(&format!("{}/{what}", self.session), details)
    }

    fn goes_to(&self, url: &str) -> Result<Value> {
        self.order("url", &json!({ "url": url }))
    }

    fn does(&self, script: &str) -> Result<Value> {
        self.order("execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until this holds in the page.
    fn sees(&self, what: &str, condition: &str) -> Result<()> {
        let script = format!(
            "const it = id => document.getElementById(id); const [sentence, hint, records, changes, \
             answer, names] = ['sentence', 'hint', 'records', 'changes', 'answer', 'names'].map(it); \
             return {condition}"
        );
        let seen = || self.does(&script).ok().filter(|it| *it == true);
        let text = || self.does("return document.body.innerText").unwrap_or_default().to_string();
        poll(SOON, seen).with_context(|| format!("not seen: {what}, in\n{}", text()))?;
        println!("  seen: {what}");
        Ok(())
    }

    /// Takes a picture of the whole page, and makes sure that nothing is wider than it, and that every
    /// text stands out from its ground.
    fn looks(&self, name: &str, width: u32, scheme: &str) -> Result<()> {
        let tell = |order: &str, params: Value| {
            self.order("goog/cdp/execute", &json!({ "cmd": order, "params": params }))
        };
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500 });
        tell("Emulation.setDeviceMetricsOverride", size)?;
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        tell("Emulation.setEmulatedMedia", json!({ "features": features }))?;
        let wide = "const it = document.documentElement; return it.scrollWidth <= it.clientWidth";
        ensure!(self.does(wide)? == true, "{name}: something is wider than the page");
        let faint = self.does(FAINT)?;
        ensure!(faint == json!([]), "{name}: hard to read: {faint:#}");
        let picture = tell("Page.captureScreenshot", json!({ "captureBeyondViewport": true }))?;
        let png = BASE64.decode(picture["data"].as_str().context("a picture")?.as_bytes())?;
        let folder = tools::target_folder()?.join("screenshots");
        fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{name}.png"));
        fs::write(&file, png)?;
        println!("  picture: {}", file.display());
        Ok(())
    }

    /// Nothing moved while the page came up, nor since.
    fn stands_still(&self) -> Result<()> {
        let moved = self.does(
            "return new Promise(done => { \
                const seen = new PerformanceObserver(list => all.push(...list.getEntries())); \
                const all = []; \
                seen.observe({ type: 'layout-shift', buffered: true }); \
                setTimeout(() => done(all.reduce((sum, it) => sum + it.value, 0)), 500); \
             })",
        )?;
        let moved = moved.as_f64().context("a number")?;
        ensure!(moved < 0.01, "things moved by {moved}");
        println!("  seen: nothing moves while it comes up");
        Ok(())
    }

    /// Those who do not see it are told what each thing is that they can get to.
    fn is_told(&self) -> Result<()> {
        let details = json!({ "cmd": "Accessibility.getFullAXTree", "params": {} });
        let tree = self.order("goog/cdp/execute", &details)?;
        let mut reached = 0;
        for node in tree["nodes"].as_array().context("a tree has nodes")? {
            let mut properties = node["properties"].as_array().into_iter().flatten();
            let focus =
                properties.any(|it| it["name"] == "focusable" && it["value"]["value"] == true);
            if focus {
                let name = node["name"]["value"].as_str().unwrap_or_default();
                ensure!(!name.is_empty(), "it has no name: {node:#}");
                reached += 1;
            }
        }
        ensure!(reached > 8, "only {reached} things can be got to");
        println!("  seen: {reached} things to get to by keyboard, each with a name");
        Ok(())
    }

    /// Nothing was complained of, and nobody else was asked for anything.
    fn has_behaved(&self, url: &str) -> Result<()> {
        let log = |kind: &str| self.order("se/log", &json!({ "type": kind }));
        // An answer that is no success is told there too: we asked for somebody who is not.
        let complaints = log("browser")?;
        let complaints = complaints.as_array().context("a log is a list")?.iter();
        let complaints: Vec<_> = complaints
            .filter(|it| !it["message"].as_str().unwrap_or_default().contains("status of 404"))
            .collect();
        ensure!(complaints.is_empty(), "the console says {complaints:#?}");
        let events = log("performance")?;
        let mut asked = 0;
        for event in events.as_array().context("a log is a list")? {
            let event: Value = serde_json::from_str(event["message"].as_str().context("text")?)?;
            let event = &event["message"];
            if event["method"] == "Network.requestWillBeSent" {
                let wanted = event["params"]["request"]["url"].as_str().context("a URL")?;
                ensure!(
                    wanted.starts_with(&format!("{url}/")) || wanted.starts_with("data:"),
                    "the page asks elsewhere: {wanted}"
                );
                asked += 1;
            }
        }
        ensure!(asked > 2, "requests are not heard of");
        println!("  seen: no complaint, and {asked} requests, all to pb-nats");
        Ok(())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends Chromium.
        let _ = http().delete(&self.session).call();
    }
}

fn post(url: &str, body: &Value) -> Result<Value> {
    let mut answer = http().post(url).send_json(body)?;
    let told: Value = answer.body_mut().with_config().limit(64 << 20).read_json()?;
    ensure!(answer.status().is_success(), "{}", told["value"]["message"]);
    Ok(told["value"].clone())
}
