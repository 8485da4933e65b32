//! TLS towards PocketBase and the servers: whom we trust, and how we notice that we do not.

use std::{error::Error, io, iter};

use reqwest::{Certificate, Client, ClientBuilder, Url, redirect};
use rustls::crypto::ring;

/// A client for this address, which trusts the system's authorities and these.
///
/// It follows no redirect, so that no token is carried away and no answer comes from elsewhere.
pub(crate) fn client(url: &Url, authorities: &[Certificate]) -> ClientBuilder {
    provide();
    let builder = Client::builder()
        .user_agent(concat!("pb-nats/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none());
    if url.scheme() == "https" {
        builder.tls_certs_merge(authorities.iter().cloned())
    } else {
        // The system may have no authorities, and without TLS need not.
        builder.tls_certs_only([])
    }
}

/// Sees to it that the process has chosen what TLS is computed with: clients take that, and where
/// two are compiled in, panic without a choice. Whoever embeds us may have made it.
pub(crate) fn provide() {
    let _ = ring::default_provider().install_default();
}

/// Whether it comes from a certificate that we do not trust.
pub(crate) fn distrusts(error: &(dyn Error + 'static)) -> bool {
    iter::successors(Some(error), |it| cause(*it))
        .any(|it| matches!(it.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))))
}

/// An I/O error leaves out of its sources the error that it was made of.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}
