//! A wire to PostgreSQL that can be cut at the worst moment: around a COMMIT, before its answer has come back.
//!
//! It listens on TCP and passes bytes on, both ways. A transaction's end is a simple query of sqlx (PostgreSQL's frontend
//! protocol, message `Q`), so it is recognised by its bytes. Invariant: of what is armed, each cut happens once, to
//! the next COMMIT on any connection, and the client never sees that COMMIT's answer.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinHandle,
};

/// `Q`, the length of what follows with itself, the statement, its end.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

/// What becomes of a COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It never arrives.
    Lost,
    /// It is sent, and the wire is cut at once; whether the server still reads it is open.
    Sent,
    /// It is done, and its answer is thrown away.
    Unanswered,
}

/// The wire.
pub struct Cutter {
    /// The database's URL, over the wire.
    pub url: String,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    armed: Mutex<Vec<Fate>>,
    cuts: AtomicUsize,
}

impl Shared {
    fn next(&self) -> Option<Fate> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

enum Upstream {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Cutter {
    /// Puts a wire before the database of `url`.
    ///
    /// # Panics
    /// If that is no URL, or no port is free.
    pub async fn start(url: &str) -> Self {
        let options: PgConnectOptions = url.parse().expect("a URL");
        let upstream = match options.get_socket() {
            Some(dir) => Upstream::Unix(dir.join(format!(".s.PGSQL.{}", options.get_port()))),
            None if options.get_host().starts_with('/') => Upstream::Unix(
                PathBuf::from(options.get_host()).join(format!(".s.PGSQL.{}", options.get_port())),
            ),
            None => Upstream::Tcp(options.get_host().to_owned(), options.get_port()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared::default());
        let listening = tokio::spawn({
            let (shared, upstream) = (shared.clone(), Arc::new(upstream));
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (shared, upstream) = (shared.clone(), upstream.clone());
                    tokio::spawn(async move {
                        let _ = client.set_nodelay(true);
                        let _ = match &*upstream {
                            Upstream::Tcp(host, port) => {
                                match TcpStream::connect((host.as_str(), *port)).await {
                                    Ok(server) => pass(client, server, &shared).await,
                                    Err(error) => Err(error),
                                }
                            }
                            Upstream::Unix(path) => match UnixStream::connect(path).await {
                                Ok(server) => pass(client, server, &shared).await,
                                Err(error) => Err(error),
                            },
                        };
                    });
                }
            }
        });
        let user = options.get_username();
        let database = options.get_database().unwrap_or(user);
        Self {
            url: format!("postgres://{user}@{address}/{database}?sslmode=disable"),
            shared,
            listening,
        }
    }

    /// The next COMMIT has this fate.
    pub fn arm(&self, fate: Fate) {
        self.shared
            .armed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(fate);
    }

    /// Takes back one fate that no COMMIT has met; gives whether there was one.
    pub fn disarm(&self) -> bool {
        self.shared.next().is_some()
    }

    /// How many times it was cut.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Passes bytes on until an end, or a cut.
async fn pass<S>(mut client: TcpStream, mut server: S, shared: &Shared) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let sent = &up[..read?];
                if sent.is_empty() {
                    return Ok(());
                }
                let commits = sent.windows(COMMIT.len()).any(|window| window == COMMIT);
                if let Some(fate) = commits.then(|| shared.next()).flatten() {
                    shared.cuts.fetch_add(1, Ordering::SeqCst);
                    if fate != Fate::Lost {
                        server.write_all(sent).await?;
                    }
                    if fate == Fate::Unanswered {
                        let _ = server.read(&mut down).await?; // it is done now
                    }
                    return Ok(()); // both ends are dropped
                }
                server.write_all(sent).await?;
            }
            read = server.read(&mut down) => {
                let answer = &down[..read?];
                if answer.is_empty() {
                    return Ok(());
                }
                client.write_all(answer).await?;
            }
        }
    }
}
