//! Something between us and PocketBase that does not always mean well.

use std::{
    io::{Read, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// What becomes of a request.
pub(crate) enum Fate {
    /// PocketBase answers it.
    Pass,
    /// PocketBase answers it, with another path and query.
    Instead(String),
    /// PocketBase answers it, but only so many bytes arrive.
    Cut(usize),
    /// This is the answer. It begins with the status: `500 Oops`.
    Answer(String),
    /// The answer is at another address.
    Redirect(u16, String),
    /// There is no answer until the middlebox is gone.
    Hang,
    /// Somebody else answers it.
    At(SocketAddr),
}

/// Listens on loopback and decides of each request, by its head, what becomes of it.
pub(crate) struct Middlebox {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
}

impl Middlebox {
    pub(crate) fn start(
        upstream: SocketAddr,
        decide: impl Fn(&str) -> Fate + Send + Sync + 'static,
    ) -> Middlebox {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let (is_over, decide) = (over.clone(), Arc::new(decide));
        let open = Arc::new(AtomicUsize::new(0));
        let count = open.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (client, decide, over) = (client.unwrap(), decide.clone(), is_over.clone());
                let count = count.clone();
                thread::spawn(move || {
                    count.fetch_add(1, Ordering::SeqCst);
                    serve(client, upstream, &*decide, &over);
                    count.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Middlebox { address, over, open }
    }

    /// How many connections go through it.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Middlebox {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// Deals with one request. Nobody minds if the connection breaks on the way.
fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    decide: &dyn Fn(&str) -> Fate,
    over: &AtomicBool,
) -> Option<()> {
    let request = read_request(&mut client)?;
    let (head, body) = request.split_once("\r\n\r\n")?;
    let fate = decide(head);
    let upstream = if let Fate::At(other) = fate { other } else { upstream };
    let (pass, limit) = match fate {
        Fate::Pass | Fate::At(_) => (head.to_owned(), usize::MAX),
        Fate::Instead(path) => {
            let old = head.split(' ').nth(1)?;
            (head.replacen(old, &path, 1), usize::MAX)
        }
        Fate::Cut(limit) => (head.to_owned(), limit),
        Fate::Redirect(status, to) => {
            let answer = format!(
                "HTTP/1.1 {status} Elsewhere\r\nLocation: {to}\r\nConnection: close\r\n\
                 Content-Length: 0\r\n\r\n"
            );
            return client.write_all(answer.as_bytes()).ok();
        }
        Fate::Answer(answer) => {
            let (status, content) = answer.split_once('\n').unwrap_or((&answer, ""));
            let length = content.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{content}"
            );
            return client.write_all(answer.as_bytes()).ok();
        }
        Fate::Hang => {
            while !over.load(Ordering::SeqCst) {
                // The client gives up, or we do.
                client.set_read_timeout(Some(std::time::Duration::from_millis(50))).ok()?;
                if matches!(client.read(&mut [0]), Ok(0)) {
                    return None;
                }
            }
            return None;
        }
    };
    let mut server = TcpStream::connect(upstream).ok()?;
    let pass = pass.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    server.write_all(format!("{pass}\r\n\r\n{body}").as_bytes()).ok()?;
    // A client that is gone takes its connection to PocketBase with it.
    let (mut gone, back) = (client.try_clone().ok()?, server.try_clone().ok()?);
    thread::spawn(move || {
        let _ = gone.read(&mut [0]);
        let _ = back.shutdown(Shutdown::Both);
    });
    let mut left = limit;
    let mut some = [0; 4096];
    while left > 0 {
        let length = server.read(&mut some).ok()?.min(left);
        if length == 0 {
            break;
        }
        client.write_all(&some[..length]).ok()?;
        left -= length;
    }
    let _ = client.shutdown(Shutdown::Both);
    Some(())
}

pub(crate) fn read_request(client: &mut impl Read) -> Option<String> {
    let mut request = Vec::new();
    let mut some = [0; 4096];
    loop {
        let length = client.read(&mut some).ok()?;
        request.extend_from_slice(&some[..length]);
        let text = String::from_utf8_lossy(&request);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let expected = head
                .lines()
                .find_map(|it| it.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= expected.unwrap_or(0) {
                return Some(text.into_owned());
            }
        }
        if length == 0 {
            return None;
        }
    }
}
