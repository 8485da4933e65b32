//! Something between two programs that does not always mean well.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// How often a pump looks whether the weather has changed.
const BLINK: Duration = Duration::from_millis(10);

/// What becomes of the connections that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    /// All passes.
    Fair,
    /// They are cut, and so is each new one.
    Cut,
    /// Nothing passes. It arrives when the weather is another.
    Held,
    /// What the server says is lost, also later.
    Deaf,
    /// Half of what the server says next passes, then the connection is cut.
    Torn,
    /// What the server says passes twice, and the second time behind what comes next.
    Twice,
    /// Everything is late, and comes in small pieces.
    Slow,
}

/// Listens on loopback, in front of another address.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    /// The weather, and which connections it is about: those whose client says this. Empty: all.
    weather: Mutex<(Weather, &'static str)>,
    over: AtomicBool,
}

impl Proxy {
    pub(super) fn before(upstream: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            upstream,
            weather: Mutex::new((Weather::Fair, "")),
            over: AtomicBool::new(false),
        });
        let its = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if its.over.load(Ordering::SeqCst) {
                    return;
                }
                let its = its.clone();
                thread::spawn(move || serve(&client, &its));
            }
        });
        Proxy { address, shared }
    }

    /// Changes the weather for the connections whose client says `word`.
    pub(super) fn set(&self, weather: Weather, word: &'static str) {
        *self.shared.weather() = (weather, word);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn weather(&self) -> MutexGuard<'_, (Weather, &'static str)> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The weather for a connection whose client has said this.
    fn weather_for(&self, said: &Mutex<String>) -> Weather {
        let (weather, word) = *self.weather();
        let said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if word.is_empty() || said.contains(word) { weather } else { Weather::Fair }
    }
}

fn serve(client: &TcpStream, shared: &Arc<Shared>) {
    let said = Arc::new(Mutex::new(String::new()));
    while shared.weather_for(&said) == Weather::Held {
        if shared.over.load(Ordering::SeqCst) {
            return;
        }
        thread::sleep(BLINK);
    }
    if shared.weather_for(&said) == Weather::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(shared.upstream) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { return };
    let (its, heard) = (shared.clone(), said.clone());
    let up = thread::spawn(move || pump(from, to, &its, &heard, true));
    if let (Ok(from), Ok(to)) = (server.try_clone(), client.try_clone()) {
        pump(from, to, shared, &said, false);
    }
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
    let _ = up.join();
}

/// Passes on what the one says to the other, as the weather has it, until either is gone.
fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, said: &Mutex<String>, up: bool) {
    let mut some = [0; 16 * 1024];
    let mut deaf = false;
    let mut begun = false;
    let mut again: Vec<u8> = Vec::new();
    let _ = from.set_read_timeout(Some(BLINK));
    let ended = loop {
        let weather = shared.weather_for(said);
        deaf |= weather == Weather::Deaf && !up;
        if shared.over.load(Ordering::SeqCst) || weather == Weather::Cut {
            break Ok(());
        }
        if weather == Weather::Held {
            thread::sleep(BLINK);
            continue;
        }
        let piece = match from.read(&mut some) {
            Ok(0) => break Ok(()),
            Ok(length) => &some[..length],
            Err(it) if matches!(it.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(it) => break Err(it),
        };
        if up {
            note(said, piece);
        }
        // It may have changed while we waited, or be known only now.
        let mut weather = shared.weather_for(said);
        while weather == Weather::Held && !shared.over.load(Ordering::SeqCst) {
            thread::sleep(BLINK);
            weather = shared.weather_for(said);
        }
        // Of an answer the head always passes; it is what comes later that is of interest.
        let late = !up && std::mem::replace(&mut begun, true);
        let passed = match weather {
            _ if deaf => Ok(()),
            Weather::Cut => break Ok(()),
            Weather::Torn if late => {
                let _ = to.write_all(&piece[..piece.len() / 2]);
                break Ok(());
            }
            Weather::Twice if late => {
                let before = std::mem::replace(&mut again, piece.to_vec());
                to.write_all(piece).and_then(|()| to.write_all(&before))
            }
            Weather::Slow => piece.chunks(64).try_for_each(|it| {
                thread::sleep(BLINK);
                to.write_all(it)
            }),
            _ => to.write_all(piece),
        };
        if passed.is_err() {
            break passed;
        }
    };
    drop(ended);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Keeps what shows which kind of connection it is: the latest request, or what was said first, up
/// to the name of the server that calls. Later it tells of others too.
fn note(said: &Mutex<String>, piece: &[u8]) {
    const ENOUGH: usize = 4096;
    const NAME: &str = "\"server_name\":\"";
    let piece = String::from_utf8_lossy(&piece[..piece.len().min(ENOUGH)]);
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    if piece.contains(" HTTP/1.1\r\n") {
        said.clear();
    }
    if said.len() < ENOUGH && !said.contains(NAME) {
        said.push_str(&piece);
        if let Some((_, behind)) = said.split_once(NAME)
            && let Some((_, rest)) = behind.split_once('"')
        {
            let length = said.len() - rest.len();
            said.truncate(length);
        }
    }
}
