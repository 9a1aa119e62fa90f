//! Whether an HTTP service answers with a status that is expected.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response};
use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls_platform_verifier::BuilderVerifierExt;
use url::Url;

use super::server::{Address, causes, class_of};
use crate::ConfigError;
use crate::health::threads::lock;
use crate::health::{BoxFuture, Check, ErrorClass, Outcome, Phase, Run};

/// An answer that is longer is not read to its end.
const MOST_READ: usize = 1 << 20;
const IDLE: Duration = Duration::from_secs(90);

/// Which service to ask, and which answers are well.
///
/// `Debug` shows no secret.
#[derive(Clone)]
pub struct HttpConfig {
    /// `http://` or `https://`; a user and password in it are sent as basic authorization.
    pub url: String,
    /// Statuses that are well, 100 to 599; 200 to 299 by default.
    pub expected_status: Vec<RangeInclusive<u16>>,
    /// Headers to send, by name.
    pub headers: Vec<(String, String)>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            expected_status: vec![200..=299],
            headers: Vec::new(),
        }
    }
}

impl fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConfig")
            .field("expected_status", &self.expected_status)
            .finish_non_exhaustive()
    }
}

/// A check that asks an HTTP service with GET.
///
/// Redirects are not followed: a service that sends its checker to a log-in page is not well. Up to
/// 1 MiB of the answer is read, so that an answer which does not end is noticed. The proxies of the
/// environment (`HTTP_PROXY` and the like) are used.
///
/// ```
/// use kailash::health::checks::{Http, HttpConfig};
///
/// let api = Http::new(HttpConfig {
///     url: "https://api.example.com/health".to_owned(),
///     expected_status: vec![200..=200, 204..=204],
///     ..HttpConfig::default()
/// })?;
/// # drop(api);
/// # Ok::<(), kailash::ConfigError>(())
/// ```
pub struct Http {
    url: Url,
    /// None behind a proxy, which looks up and connects for the check.
    address: Option<Address>,
    shown: String,
    expected_status: Vec<RangeInclusive<u16>>,
    headers: HeaderMap,
    tls: ClientConfig,
    /// Dropped with its connection by a run that does not end well.
    kept: Mutex<Option<Client>>,
}

impl Http {
    /// A check of this service; it connects when it first runs.
    ///
    /// # Errors
    /// When the URL, a range of statuses or a header cannot be used, or the system's trusted
    /// certificates cannot be read for `https`.
    pub fn new(config: HttpConfig) -> Result<Self, ConfigError> {
        let url = Url::parse(&config.url).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        // The URL is not told: it may hold a password where none is looked for.
        let url = url.ok_or_else(|| {
            ConfigError::new("url", "this url", "http:// or https:// with a host")
        })?;
        let host = url.host_str().unwrap_or_default();
        let address = Address::new(host, url.port_or_known_default().unwrap_or(80));
        let address = (!has_proxy()).then_some(address);
        // Neither the user nor what comes after the path, where tokens are.
        let port = url.port().map(|port| format!(":{port}"));
        let shown = format!(
            "{}://{host}{}{}",
            url.scheme(),
            port.unwrap_or_default(),
            url.path()
        );
        let allowed = 100..=599;
        let wrong = |range: &&RangeInclusive<u16>| {
            range.is_empty() || !allowed.contains(range.start()) || !allowed.contains(range.end())
        };
        if let Some(range) = config.expected_status.iter().find(wrong) {
            let value = format!("{} to {}", range.start(), range.end());
            return Err(ConfigError::new("expected_status", value, "100 to 599"));
        }
        if config.expected_status.is_empty() {
            return Err(ConfigError::new("expected_status", "none", "at least one"));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let (Ok(name), Ok(mut value)) =
                (name.parse::<HeaderName>(), HeaderValue::from_str(value))
            else {
                return Err(ConfigError::new(
                    "headers",
                    name,
                    "names and values of HTTP headers",
                ));
            };
            value.set_sensitive(true);
            headers.append(name, value);
        }
        let tls = tls(url.scheme() == "https");
        let tls = tls.ok_or_else(|| {
            ConfigError::new(
                "url",
                &shown,
                "https where the system has trusted certificates",
            )
        })?;
        Ok(Self {
            url,
            address,
            shown,
            expected_status: config.expected_status,
            headers,
            tls,
            kept: Mutex::new(None),
        })
    }

    fn client(&self) -> reqwest::Result<Client> {
        Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(IDLE)
            .user_agent("kailash-health")
            .build()
    }

    async fn ask(&self, run: &Run) -> Result<Outcome, Outcome> {
        let kept = lock(&self.kept).take();
        let is_kept = kept.is_some();
        let client = match kept {
            Some(client) => client,
            None => self.new_client(run).await?,
        };
        let (client, answer) = match self.send(run, &client).await {
            // A kept connection may have been closed while nobody looked, with a last word or without.
            Err(error)
                if is_kept
                    && matches!(
                        self.class(&error),
                        ErrorClass::Closed | ErrorClass::Mismatch
                    ) =>
            {
                let client = self.new_client(run).await?;
                let answer = self.send(run, &client).await;
                (client, answer)
            }
            answer => (client, answer),
        };
        let mut answer = answer.map_err(|error| self.outcome(&error))?;
        let status = answer.status().as_u16();
        run.reached(Phase::Body);
        let mut read = 0;
        while let Some(part) = answer.chunk().await.map_err(|error| self.outcome(&error))? {
            read += part.len();
            if read > MOST_READ {
                break;
            }
        }
        // One that is read to its end can be used again; otherwise the connection is closed here.
        drop(answer);
        *lock(&self.kept) = Some(client);
        let shown = &self.shown;
        let outcome = if self
            .expected_status
            .iter()
            .any(|range| range.contains(&status))
        {
            Outcome::healthy()
        } else {
            Outcome::error(
                ErrorClass::Status,
                format_args!("{shown} answers with {status}"),
            )
        };
        Ok(outcome.detail("status_code", status))
    }

    async fn new_client(&self, run: &Run) -> Result<Client, Outcome> {
        if let Some(address) = &self.address {
            address.look_up(run).await?;
        }
        self.client().map_err(|error| self.outcome(&error))
    }

    async fn send(&self, run: &Run, client: &Client) -> reqwest::Result<Response> {
        let request = client.get(self.url.clone()).headers(self.headers.clone());
        match &self.address {
            Some(address) => address.watch(run, request.send()).await,
            None => request.send().await,
        }
    }

    fn outcome(&self, error: &reqwest::Error) -> Outcome {
        let class = self.class(error);
        match tls_reason(error) {
            Some(reason) if class == ErrorClass::Tls => {
                Outcome::error(class, format_args!("{reason}: {}", self.shown))
            }
            _ => Outcome::error(class, &self.shown),
        }
    }

    fn class(&self, error: &reqwest::Error) -> ErrorClass {
        match class_of(error) {
            Some(class) => class,
            None if error.is_connect() => ErrorClass::Unreachable,
            None if error.is_builder() => ErrorClass::Failed,
            // What remains is an answer that is none, or one that breaks off.
            None if is_unparsable(error) => ErrorClass::Mismatch,
            None => ErrorClass::Closed,
        }
    }
}

impl Check for Http {
    fn check<'a>(&'a self, run: &'a Run) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            let answer = self.ask(run).await;
            answer
                .unwrap_or_else(|outcome| outcome)
                .detail("url", self.shown.clone())
        })
    }
}

/// Whether the environment names a proxy, which the client then uses.
fn has_proxy() -> bool {
    let names = ["http_proxy", "https_proxy", "all_proxy"];
    names.iter().any(|name| {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|proxy| !proxy.is_empty());
        is_set(name) || is_set(&name.to_uppercase())
    })
}

/// TLS with the system's trusted certificates, or with none where none are needed.
fn tls(is_needed: bool) -> Option<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().ok()?;
    let mut tls = if is_needed {
        builder.with_platform_verifier().ok()?.with_no_client_auth()
    } else {
        let none = rustls::RootCertStore::empty();
        builder.with_root_certificates(none).with_no_client_auth()
    };
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Some(tls)
}

/// Why no trusted connection was made.
fn tls_reason(error: &reqwest::Error) -> Option<&'static str> {
    use rustls::{CertificateError, Error as Tls};
    let tls = causes(error).find_map(|cause| cause.downcast_ref::<Tls>())?;
    Some(match tls {
        Tls::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "expired",
        Tls::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "not valid yet",
        Tls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "wrong name",
        Tls::InvalidCertificate(CertificateError::UnknownIssuer) => "unknown issuer",
        Tls::InvalidCertificate(_) => "certificate",
        Tls::InvalidMessage(_) => "no tls there",
        _ => "handshake",
    })
}

/// Whether the answer was no HTTP: the driver has no type for it that could be asked.
fn is_unparsable(error: &reqwest::Error) -> bool {
    let words = ["invalid HTTP", "unexpected message", "head is too large"];
    causes(error).skip(1).any(|cause| {
        let text = cause.to_string();
        words.iter().any(|word| text.contains(word))
    })
}
