//! HTTP and TLS towards PocketBase and the servers: whom we trust, how we notice that we do not, and how
//! much we let them tell.

use std::{error::Error, io, iter};

use reqwest::{Certificate, Client, ClientBuilder, Response, Url, redirect};
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

/// Whether it comes from somebody who does not speak TLS.
pub(crate) fn speaks_otherwise(error: &(dyn Error + 'static)) -> bool {
    iter::successors(Some(error), |it| cause(*it))
        .any(|it| matches!(it.downcast_ref(), Some(rustls::Error::InvalidMessage(_))))
}

/// Whether it comes from a name that no address is known for.
pub(crate) fn is_unknown_host(error: &(dyn Error + 'static)) -> bool {
    iter::successors(Some(error), |it| cause(*it)).any(|it| it.to_string() == "dns error")
}

/// No server has more to tell of itself than this.
pub(crate) const MOST: usize = 1 << 24;

/// The body of an answer, as far as it is no larger than `most`. `None`: it is.
///
/// It is put together as its pieces come, so that a large one is there once. What grows takes up to
/// three times its room, so there can be room for an `expected` size from the start.
pub(crate) async fn body(
    mut response: Response,
    expected: usize,
    most: usize,
) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::with_capacity(expected);
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body))
}

/// An I/O error leaves out of its sources the error that it was made of.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}
