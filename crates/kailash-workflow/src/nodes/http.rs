//! One HTTP request.

use std::error::Error as _;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use kailash::redact::redact;
use kailash::refusal::is_refusal;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Url};

use crate::duration;
use crate::error::NodeError;
use crate::node::{Node, Ports};
use crate::value::{Map, Value};

/// How long a request may take unless it says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A node that makes HTTP requests; clones share its connections.
///
/// Inputs: `url`, `method` (GET), `headers`, `params` (the query), `json` or `data` (the body: text,
/// bytes, or a map as a form), `timeout` (30 s; the whole request). Any answer is an output, with
/// `success` for a status below 400; no answer is an error.
///
/// ```no_run
/// use kailash_workflow::nodes::HttpRequest;
/// use kailash_workflow::Value;
/// use serde_json::json;
///
/// # async fn example() -> Result<(), kailash_workflow::NodeError> {
/// let http = HttpRequest::new();
/// let order = json!({"url": "http://shop/orders", "method": "POST", "json": {"id": 7}});
/// let Value::Map(inputs) = Value::from(order) else { unreachable!() };
/// let outputs = http.execute(inputs).await?;
/// assert_eq!(outputs["status_code"], Value::Int(201));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct HttpRequest {
    clients: Arc<Clients>,
}

/// Made when they are first needed, and kept with their connections.
#[derive(Debug, Default)]
struct Clients {
    plain: OnceLock<Client>,
    secure: OnceLock<Client>,
}

impl HttpRequest {
    /// A node with connections of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes one request.
    ///
    /// # Errors
    /// When an input does not fit, or there is no answer. No error shows a secret of the URL.
    pub async fn execute(&self, inputs: Map) -> Result<Map, NodeError> {
        let request = Request::read(inputs)?;
        let shown = format!("{} {}", request.method, shown(&request.url));
        let timeout = request.timeout;
        let started = Instant::now();
        let exchange = async {
            let mut builder = self
                .client(&request.url)?
                .request(request.method, request.url);
            builder = builder.headers(request.headers);
            if let Some(body) = request.body {
                builder = builder.body(body);
            }
            let response = builder
                .send()
                .await
                .map_err(|error| no_answer(&shown, error))?;
            let (status, headers) = (response.status(), response.headers().clone());
            let url = response.url().clone();
            let body = response
                .bytes()
                .await
                .map_err(|error| no_answer(&shown, error))?;
            Ok(outputs(
                status.as_u16(),
                &headers,
                &url,
                &body,
                started.elapsed(),
            ))
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(result) => result,
            Err(_) => Err(NodeError::execution(format!(
                "{shown}: no answer within {timeout:?}"
            ))),
        }
    }

    fn client(&self, url: &Url) -> Result<&Client, NodeError> {
        let (kept, is_secure) = match url.scheme() {
            "https" => (&self.clients.secure, true),
            _ => (&self.clients.plain, false),
        };
        if let Some(client) = kept.get() {
            return Ok(client);
        }
        // Whoever else installed a provider was first, which is as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().build().or_else(|error| {
            if is_secure {
                return Err(error);
            }
            // A machine without trusted certificates can still talk to one that needs none.
            let tls = rustls::ClientConfig::builder()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            Client::builder().tls_backend_preconfigured(tls).build()
        });
        let client = client.map_err(|error| NodeError::execution(causes(&error)))?;
        Ok(kept.get_or_init(|| client))
    }
}

impl Node for HttpRequest {
    fn inputs(&self) -> Ports {
        Ports::named([
            "url", "method", "headers", "params", "json", "data", "timeout",
        ])
    }

    fn outputs(&self) -> Ports {
        Ports::named(["status_code", "success", "response"])
    }

    /// A server's own failure counts; a request it refused does not.
    fn is_failure(&self, outputs: &Map) -> bool {
        matches!(outputs.get("status_code"), Some(Value::Int(500..)))
    }

    fn run(&self, inputs: Map) -> BoxFuture<'_, Result<Map, NodeError>> {
        Box::pin(self.execute(inputs))
    }
}

struct Request {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Option<Vec<u8>>,
    timeout: Duration,
}

impl Request {
    fn read(mut inputs: Map) -> Result<Self, NodeError> {
        let mut take = |name: &str| inputs.swap_remove(name).filter(|value| !value.is_null());
        let mut url = match take("url") {
            // The text is not quoted: it may hold a secret.
            Some(Value::Text(url)) => Url::parse(&url).map_err(|error| invalid("url", error))?,
            Some(other) => return Err(mismatch("url", &other, "text")),
            None => return Err(NodeError::Input("url is missing".to_owned())),
        };
        if !matches!(url.scheme(), "http" | "https") {
            return Err(NodeError::Input(
                "url: allowed is http:// or https://".to_owned(),
            ));
        }
        let method = match take("method") {
            None => Method::GET,
            Some(Value::Text(method)) => {
                let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes());
                method.map_err(|error| invalid("method", error))?
            }
            Some(other) => return Err(mismatch("method", &other, "text")),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in fields("headers", take("headers"))? {
            let value = HeaderValue::from_str(&value.to_string());
            let value =
                value.map_err(|_| invalid(&format!("headers.{name}"), "not a header's value"))?;
            let key = HeaderName::from_bytes(name.as_bytes());
            headers.insert(
                key.map_err(|error| invalid(&format!("headers.{name}"), error))?,
                value,
            );
        }
        let params = fields("params", take("params"))?;
        if !params.is_empty() {
            let mut query = url.query_pairs_mut();
            for (name, value) in pairs(&params) {
                query.append_pair(name, &value);
            }
        }
        let (json, data) = (take("json"), take("data"));
        let body = match (json, data) {
            (Some(_), Some(_)) => {
                return Err(NodeError::Input(
                    "json and data exclude each other".to_owned(),
                ));
            }
            (Some(json), None) => {
                Some(("application/json", json.to_json().to_string().into_bytes()))
            }
            (None, Some(Value::Text(text))) => {
                Some(("text/plain; charset=utf-8", text.into_bytes()))
            }
            (None, Some(Value::Bytes(bytes))) => Some(("application/octet-stream", bytes)),
            (None, Some(Value::Map(form))) => {
                let mut encoded = url::form_urlencoded::Serializer::new(String::new());
                for (name, value) in pairs(&form) {
                    encoded.append_pair(name, &value);
                }
                Some((
                    "application/x-www-form-urlencoded",
                    encoded.finish().into_bytes(),
                ))
            }
            (None, Some(other)) => return Err(mismatch("data", &other, "text, bytes or a map")),
            (None, None) => None,
        };
        if let Some((content_type, _)) = body {
            let content_type = HeaderValue::from_static(content_type);
            headers.entry(CONTENT_TYPE).or_insert(content_type);
        }
        let timeout = match take("timeout") {
            None => DEFAULT_TIMEOUT,
            Some(value) => {
                let timeout = duration::read(&value).filter(|timeout| !timeout.is_zero());
                timeout.ok_or_else(|| mismatch("timeout", &value, duration::ALLOWED))?
            }
        };
        if let Some(unknown) = inputs.keys().next() {
            return Err(NodeError::Input(format!("unknown key {unknown:?}")));
        }
        Ok(Self {
            method,
            url,
            headers,
            body: body.map(|(_, body)| body),
            timeout,
        })
    }
}

fn fields(name: &str, value: Option<Value>) -> Result<Map, NodeError> {
    match value {
        None => Ok(Map::new()),
        Some(Value::Map(map)) => Ok(map),
        Some(other) => Err(mismatch(name, &other, "a map")),
    }
}

/// The fields, a list as one pair for each of its values.
fn pairs(map: &Map) -> impl Iterator<Item = (&str, String)> {
    map.iter().flat_map(|(name, value)| {
        let values = match value {
            Value::List(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        values
            .iter()
            .map(move |value| (name.as_str(), value.to_string()))
    })
}

fn mismatch(name: &str, value: &Value, allowed: &str) -> NodeError {
    NodeError::Input(format!("{name} is {}, allowed is {allowed}", value.kind()))
}

fn invalid(name: &str, reason: impl std::fmt::Display) -> NodeError {
    NodeError::Input(format!("{name}: {reason}"))
}

/// A URL without what may be secret: user, password, query and fragment.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

fn no_answer(shown: &str, error: reqwest::Error) -> NodeError {
    // Before it loses the URL, by which a redirect to another scheme is known as an answer.
    let is_not_sent = is_refusal(&error);
    let error = error.without_url();
    let causes = causes(&error);
    let causes = redact(&causes);
    if is_not_sent {
        // The next attempt would fare no better.
        return NodeError::Input(format!("{shown}: no request: {causes}"));
    }
    NodeError::execution(format!("{shown}: no answer: {causes}"))
}

/// The error and what caused it, in one line.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn outputs(status: u16, headers: &HeaderMap, url: &Url, body: &[u8], took: Duration) -> Map {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let mut fields = Map::new();
    for name in headers.keys() {
        let values = headers.get_all(name).iter();
        let values: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        fields.insert(name.to_string(), values.join(", ").into());
    }
    let response = Map::from_iter([
        ("status_code".to_owned(), Value::Int(status.into())),
        ("headers".to_owned(), Value::Map(fields)),
        (
            "content_type".to_owned(),
            content_type.map(str::to_owned).into(),
        ),
        ("content".to_owned(), content(content_type, body)),
        (
            "response_time_ms".to_owned(),
            Value::Float(took.as_secs_f64() * 1000.0),
        ),
        ("url".to_owned(), redact(url.as_str()).into_owned().into()),
    ]);
    Map::from_iter([
        ("status_code".to_owned(), Value::Int(status.into())),
        ("success".to_owned(), Value::Bool(status < 400)),
        ("response".to_owned(), Value::Map(response)),
    ])
}

/// JSON where the answer says so and is, text where it is text, bytes otherwise.
fn content(content_type: Option<&str>, body: &[u8]) -> Value {
    let essence = content_type
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    let is_json = essence == "application/json" || essence.ends_with("+json");
    if is_json && let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) {
        return json.into();
    }
    match std::str::from_utf8(body) {
        Ok(text) => Value::from(text),
        // Latin-1 is what text without a declared character set was before UTF-8.
        Err(_) if essence.starts_with("text/") => {
            Value::Text(body.iter().map(|byte| char::from(*byte)).collect())
        }
        Err(_) => Value::Bytes(body.to_vec()),
    }
}
