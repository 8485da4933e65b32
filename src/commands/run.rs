//! `pb-nats run`.

use std::{env, mem, pin::pin, process::ExitCode};

use anyhow::Context;
use pb_nats::{Options, PocketBase, Reconciler, admin::Admin, status::Writer};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::{open, options, reconciler};
use crate::{Cli, hint};

pub(crate) async fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    // Before anything else: until it is caught, SIGHUP ends a process.
    let mut hangups = hangups()?;
    let mut shutdown = pin!(shutdown()?);
    let (mut reconciler, options) = open(cli)?;
    // Else the port would be what is in the way, and that tells less.
    reconciler.check_alone()?;
    let watch = reconciler.status().clone();
    let mut admin = Admin::start(&options, &reconciler).await?;
    let mut _writer = Writer::start(&options, &watch);
    let mut former = None;
    let (version, file) = (env!("CARGO_PKG_VERSION"), options.auth_file.path.display());
    info!(version, %file, "pb-nats keeps NATS in step with PocketBase");
    notify(&[NotifyState::Ready]);
    loop {
        let mut next = None;
        let stop = async {
            // Who waits for this has the lock, so nobody goes back to the former settings.
            former = None;
            loop {
                tokio::select! {
                    () = &mut shutdown => return,
                    _ = hangups.recv() => match reopen(cli) {
                        Ok(opened) => {
                            next = Some(opened);
                            return;
                        }
                        Err(error) => keep_settings(&error),
                    }
                }
            }
        };
        match (reconciler.run(stop).await, former.take()) {
            (Ok(()), _) => (),
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some((former, served))) => {
                keep_settings(&error.into());
                reconciler = former;
                _writer = Writer::start(&served, &watch);
                if let Err(error) = admin.change(&served, &reconciler).await {
                    keep_settings(&error.into());
                }
                continue;
            }
        }
        let Some((mut next, options)) = next else { break };
        match admin.change(&options, &next).await {
            Ok(served) => {
                next.report_to(&watch);
                _writer = Writer::start(&options, &watch);
                former = Some((mem::replace(&mut reconciler, next), served));
            }
            Err(error) => {
                keep_settings(&error.into());
                continue;
            }
        }
        info!("the settings were read again");
    }
    notify(&[NotifyState::Stopping]);
    info!("stopped; what is in force stays in force");
    Ok(ExitCode::SUCCESS)
}

/// The settings as they are now, put in force at once.
fn reopen(cli: &Cli) -> anyhow::Result<(Reconciler<PocketBase>, Options)> {
    let mut options = options(cli)?;
    options.auth_file.generate_initial = true;
    Ok((reconciler(&options)?, options))
}

fn keep_settings(error: &anyhow::Error) {
    let (hint, error) = (hint(error), format!("{error:#}"));
    error!(error, hint, "the settings as they are now cannot be used; the former ones stay");
}

/// Resolves at the first SIGINT or SIGTERM since the call.
pub(super) fn shutdown() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
        }
    })
}

/// One item for each SIGHUP since the call.
fn hangups() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("SIGHUP cannot be caught")
}

/// Tells systemd, where it listens.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd was not told");
    }
}
