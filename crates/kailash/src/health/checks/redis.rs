//! Whether a Redis server answers a PING.

use std::fmt;
use std::sync::Mutex;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, ServerErrorKind,
};
use tokio::time::timeout;

use super::server::{Address, class_of};
use crate::ConfigError;
use crate::health::threads::lock;
use crate::health::{BoxFuture, Check, ErrorClass, Outcome, Phase, Run};

/// Which Redis server to ask.
///
/// `Debug` shows no password.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://`, `rediss://` or `redis+unix://`; the other fields do not count then.
    pub url: Option<String>,
    /// The host; `localhost` by default.
    pub host: String,
    /// The port; 6379 by default.
    pub port: u16,
    /// The number of the database; 0 by default.
    pub db: u32,
    /// The user, if it is not the default one.
    pub username: Option<String>,
    /// The password, if it asks for one.
    pub password: Option<String>,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            url: None,
            host: "localhost".to_owned(),
            port: 6379,
            db: 0,
            username: None,
            password: None,
        }
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig").finish_non_exhaustive()
    }
}

/// A check that asks a Redis server for a PING.
///
/// A kept connection that does not answer within half of the timeout is given up for a new one.
///
/// ```
/// use kailash::health::checks::{Redis, RedisConfig};
///
/// let cache = Redis::new(RedisConfig { host: "cache".to_owned(), ..RedisConfig::default() })?;
/// # drop(cache);
/// # Ok::<(), kailash::ConfigError>(())
/// ```
pub struct Redis {
    client: Client,
    /// None for a local socket.
    address: Option<Address>,
    shown: String,
    kept: Mutex<Option<MultiplexedConnection>>,
}

impl Redis {
    /// A check of this server; it connects when it first runs.
    ///
    /// # Errors
    /// When the URL cannot be used, or the host is empty.
    pub fn new(config: RedisConfig) -> Result<Self, ConfigError> {
        let info = match &config.url {
            Some(url) => connection_info(url)?,
            None if config.host.is_empty() => {
                return Err(ConfigError::new("host", "\"\"", "a name or an address"));
            }
            None => {
                let mut settings = RedisConnectionInfo::default().set_db(config.db.into());
                if let Some(username) = &config.username {
                    settings = settings.set_username(username);
                }
                if let Some(password) = &config.password {
                    settings = settings.set_password(password);
                }
                let address = ConnectionAddr::Tcp(config.host, config.port);
                let info = address.into_connection_info();
                let info =
                    info.map_err(|_| ConfigError::new("host", "it", "a name or an address"))?;
                info.set_redis_settings(settings)
            }
        };
        let db = info.redis_settings().db();
        let (address, shown) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => (
                Some(Address::new(host, *port)),
                format!("redis://{host}:{port}/{db}"),
            ),
            ConnectionAddr::TcpTls { host, port, .. } => {
                provide_cryptography();
                (
                    Some(Address::new(host, *port)),
                    format!("rediss://{host}:{port}/{db}"),
                )
            }
            ConnectionAddr::Unix(path) => (None, format!("redis+unix://{}", path.display())),
            _ => (None, "redis".to_owned()),
        };
        let client = Client::open(info);
        let client = client.map_err(|_| ConfigError::new("url", &shown, URLS))?;
        Ok(Self {
            client,
            address,
            shown,
            kept: Mutex::new(None),
        })
    }

    async fn ask(&self, run: &Run) -> Result<(), Outcome> {
        let kept = lock(&self.kept).take();
        if let Some(mut connection) = kept {
            run.reached(Phase::Connected);
            let answer = timeout(run.remaining() / 2, ping(&mut connection)).await;
            match answer {
                Ok(Ok(())) => {
                    *lock(&self.kept) = Some(connection);
                    return Ok(());
                }
                // The server's own error comes again on any connection.
                Ok(Err(error))
                    if matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) =>
                {
                    return Err(self.outcome(&error));
                }
                Ok(Err(_)) | Err(_) => drop(connection),
            }
        }
        // The deadline of the run is the only one.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let connecting = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let connection = match &self.address {
            Some(address) => {
                address.look_up(run).await?;
                address.watch(run, connecting).await
            }
            None => connecting.await,
        };
        let mut connection = connection.map_err(|error| self.outcome(&error))?;
        run.reached(Phase::Connected);
        let answer = ping(&mut connection).await;
        answer.map_err(|error| self.outcome(&error))?;
        *lock(&self.kept) = Some(connection);
        Ok(())
    }

    /// What an error means; of the server's text only the first word goes on.
    fn outcome(&self, error: &RedisError) -> Outcome {
        let code = error.code();
        let class = match (code, error.kind()) {
            (Some("NOAUTH" | "WRONGPASS" | "NOPERM"), _) | (_, ErrorKind::AuthenticationFailed) => {
                ErrorClass::Auth
            }
            (Some("LOADING" | "BUSY"), _)
            | (_, ErrorKind::Server(ServerErrorKind::BusyLoading)) => ErrorClass::Starting,
            (Some("READONLY" | "MISCONF"), _)
            | (_, ErrorKind::Server(ServerErrorKind::ReadOnly)) => ErrorClass::ReadOnly,
            (Some("MASTERDOWN" | "CLUSTERDOWN"), _) => ErrorClass::Server,
            _ if error.to_string().contains("max number of clients") => ErrorClass::Saturated,
            (_, ErrorKind::Io) => class_of(error).unwrap_or(ErrorClass::Closed),
            (_, ErrorKind::Parse | ErrorKind::UnexpectedReturnType) => ErrorClass::Mismatch,
            _ => class_of(error).unwrap_or(ErrorClass::Server),
        };
        let shown = &self.shown;
        match code {
            Some(code) => Outcome::error(class, format_args!("{shown} answers {code}")),
            None => Outcome::error(class, shown),
        }
    }
}

impl Check for Redis {
    fn check<'a>(&'a self, run: &'a Run) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            match self.ask(run).await {
                Ok(()) => Outcome::healthy(),
                Err(outcome) => outcome,
            }
            .detail("server", self.shown.clone())
        })
    }
}

const URLS: &str = "redis://USER:PASSWORD@HOST:PORT/DB, rediss://.. or redis+unix:///PATH";

fn connection_info(url: &str) -> Result<ConnectionInfo, ConfigError> {
    let info = url.into_connection_info();
    // The URL is not told: it may hold a password where none is looked for.
    info.map_err(|_| ConfigError::new("url", "this url", URLS))
}

/// The driver takes rustls' cryptography from the process, which may have chosen none.
fn provide_cryptography() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Lost only to another thread that chose in between.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

async fn ping(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    let answer: String = redis::cmd("PING").query_async(connection).await?;
    if answer == "PONG" {
        return Ok(());
    }
    Err((ErrorKind::UnexpectedReturnType, "not a PONG").into())
}
