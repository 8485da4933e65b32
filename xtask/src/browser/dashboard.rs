//! PocketBase's own dashboard, in which people make users by mouse and keyboard.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Browser, SOON};
use crate::support::{Nats, Pb, PbNats, SUPERUSER, poll};

/// One of each kind: they look alike from 0.23 to 0.36, and are made anew in 0.40. None: the latest.
const VERSIONS: [Option<&str>; 3] = [Some("0.23.12"), Some("0.28.4"), None];

/// How `WebDriver` calls what it refers to an element by.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A password is typed there, in a record of the collection that `pb-nats init` has made, and with it
/// the user logs in to NATS.
pub(super) fn makes_users(binary: &Path) -> Result<()> {
    let browser = Browser::start()?;
    // In a small window the collections are behind a menu.
    browser.order("window/rect", &json!({ "width": 1400, "height": 1200 }))?;
    for version in VERSIONS {
        let (pb, nats) = (Pb::empty(version), Nats::start());
        let mut pb_nats = PbNats::between(binary, &pb, &nats);
        // `init` makes one of the service account.
        fs::remove_file(pb_nats.dir().join("token"))?;
        let (superuser, password) = SUPERUSER;
        pb_nats.set_env("PB_NATS_SUPERUSER", superuser);
        pb_nats.set_env("PB_NATS_SUPERUSER_PASSWORD", password);
        pb_nats.command(&["init", "--yes"]).success();

        browser.goes_to(&format!("{}/_/", pb.url()))?;
        browser.types(&["Email"], superuser)?;
        browser.types(&["Password"], password)?;
        browser.clicks(&["Login"])?;
        browser.clicks(&["nats_users"])?;
        browser.clicks(&["New record"])?;
        browser.types(&["Password"], "typed by hand")?;
        browser.types(&["Password confirm", "Confirm"], "typed by hand")?;
        browser.types(&["username"], "ann")?;
        browser.clicks(&["Open picker", "Open records picker"])?;
        browser.clicks(&["device"])?;
        browser.clicks(&["Set selection"])?;
        browser.ticks("active")?;
        browser.clicks(&["Create"])?;
        let made = || {
            let records = pb.ask("GET", "/api/collections/nats_users/records", &Value::Null);
            (records["items"][0]["username"] == "ann").then_some(())
        };
        let text = || browser.does("return document.body.innerText").unwrap_or_default();
        poll(SOON, made).with_context(|| format!("no user was made, in\n{}", text()))?;

        pb_nats.once().success();
        ensure!(nats.accepts("ann", "typed by hand"), "{version:?}: the password does not work");
        ensure!(!nats.accepts("ann", "typed by hane"), "{version:?}: any password works");
        let mut ann = nats.client("ann", "typed by hand");
        ensure!(ann.may_publish("devices.ann.1") && !ann.may_publish("devices.bob.1"));
        // And nowhere else.
        ensure!(
            pb.log_in("nats_users", "ann", "typed by hand").is_none(),
            "PocketBase lets ann in"
        );
        let version = version.unwrap_or("the latest");
        println!("  seen: a password typed in the dashboard of {version} lets into NATS");
    }
    Ok(())
}

impl Browser {
    /// Types into the input that has one of these labels.
    fn types(&self, labels: &[&str], text: &str) -> Result<()> {
        let wanted = format!("{} return inputs[0]", inputs(labels));
        self.at(labels, &wanted, "value", &json!({ "text": text }))
    }

    /// Clicks what has one of these words and nothing else in it, in the dialog that is in front.
    fn clicks(&self, words: &[&str]) -> Result<()> {
        let wanted = format!(
            "const words = {}; \
             const all = [...document.querySelectorAll('button, a, [role=button], .list-item')]; \
             return all.filter(it => it.checkVisibility() && words.includes(it.innerText.trim())).at(-1)",
            json!(words)
        );
        self.at(words, &wanted, "click", &json!({}))
    }

    /// Clicks the label of a switch.
    fn ticks(&self, label: &str) -> Result<()> {
        let wanted = format!("{} return inputs[0]?.labels[0]", inputs(&[label]));
        self.at(&[label], &wanted, "click", &json!({}))
    }

    /// Does this with the element that the script finds, as soon as it is there and nothing is before
    /// it any more.
    fn at(&self, names: &[&str], script: &str, action: &str, details: &Value) -> Result<()> {
        let done = || {
            let found = self.does(script).ok()?;
            let element = found[ELEMENT].as_str()?;
            self.order(&format!("element/{element}/{action}"), details).ok()
        };
        let text = || self.does("return document.body.innerText").unwrap_or_default();
        poll(SOON, done).with_context(|| format!("no {action} at {names:?}, in\n{}", text()))?;
        Ok(())
    }
}

/// A script that calls `inputs` those with one of these labels, whatever marks stand behind that.
fn inputs(labels: &[&str]) -> String {
    format!(
        "const labels = {}; \
         const named = it => labels.includes(it.innerText.trim().replace(/\\W+$/, '')); \
         const inputs = [...document.querySelectorAll('input, textarea')] \
             .filter(it => it.checkVisibility() && [...it.labels].some(named));",
        json!(labels)
    )
}
