//! pb-nats inside a program of yours.

use pb_nats::{Options, PocketBase, Reconciler, options::EventFilter};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let settings = std::env::args().nth(1).unwrap_or_else(|| "pb-nats.toml".into());
    let mut options = Options::load(Some(settings.as_ref()), std::env::vars_os())?;
    options.event_filter = Some(EventFilter::new(|event| event.name != "scratch"));
    let source = PocketBase::open(&options.pocketbase)?;
    let shutdown = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
    Reconciler::new(source, &options)?.run(shutdown).await?;
    Ok(())
}
