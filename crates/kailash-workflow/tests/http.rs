//! HTTP against a real server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::{any, get};
use kailash_workflow::nodes::HttpRequest;
use kailash_workflow::{Map, Node as _, NodeError, Value, WorkflowBuilder};
use serde_json::json;

async fn serve() -> String {
    let echo = |method: axum::http::Method, uri: Uri, headers: HeaderMap, body: Bytes| async move {
        let header = |name: &str| {
            headers
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        let echo = json!({
            "method": method.as_str(),
            "query": uri.query(),
            "content_type": header("content-type"),
            "key": header("idempotency-key"),
            "body": String::from_utf8(body.to_vec()).unwrap(),
        });
        (
            [("content-type", "application/json; charset=utf-8")],
            echo.to_string(),
        )
    };
    let status = |request: Request| async move {
        let status = request
            .uri()
            .path()
            .trim_start_matches("/status/")
            .parse()
            .unwrap();
        (StatusCode::from_u16(status).unwrap(), "text here")
    };
    let hang = get(std::future::pending::<()>);
    let router = Router::new()
        .route("/echo", any(echo))
        .route(
            "/elsewhere",
            get(async || (StatusCode::FOUND, [("location", "ftp://example.org/")])),
        )
        .route("/status/{status}", any(status))
        .route(
            "/bytes",
            get(|| async { Bytes::from_static(&[0, 159, 146, 150]) }),
        )
        .route("/hang", hang);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

async fn request(inputs: serde_json::Value) -> Result<Map, NodeError> {
    let Value::Map(inputs) = Value::from(inputs) else {
        unreachable!()
    };
    HttpRequest::new().execute(inputs).await
}

#[tokio::test]
async fn a_request_carries_its_headers_params_and_body() {
    let url = format!("{}/echo", serve().await);
    let cases = [
        (
            json!({"url": url}),
            json!({"method": "GET", "query": null, "content_type": null, "key": null, "body": ""}),
        ),
        (
            json!({"url": format!("{url}?a=1"), "params": {"b": "ä&", "c": [1, 2]}}),
            json!({"method": "GET", "query": "a=1&b=%C3%A4%26&c=1&c=2", "content_type": null, "key": null, "body": ""}),
        ),
        (
            json!({"url": url, "method": "post", "json": {"id": 7}, "headers": {"Idempotency-Key": 7}}),
            json!({"method": "POST", "query": null, "content_type": "application/json", "key": "7", "body": "{\"id\":7}"}),
        ),
        (
            json!({"url": url, "method": "PUT", "data": {"a": "x y"}}),
            json!({"method": "PUT", "query": null, "content_type": "application/x-www-form-urlencoded", "key": null, "body": "a=x+y"}),
        ),
        (
            json!({"url": url, "method": "PUT", "data": "<a/>", "headers": {"content-type": "text/xml"}}),
            json!({"method": "PUT", "query": null, "content_type": "text/xml", "key": null, "body": "<a/>"}),
        ),
    ];
    for (inputs, expected) in cases {
        let outputs = request(inputs).await.unwrap();
        let response = &outputs["response"];
        assert_eq!(response.field("content").unwrap().to_json(), expected);
        assert_eq!(
            response.field("content_type").unwrap().to_string(),
            "application/json; charset=utf-8"
        );
        assert_eq!(outputs["success"], Value::Bool(true));
        for field in [
            "status_code",
            "headers",
            "content_type",
            "content",
            "response_time_ms",
            "url",
        ] {
            assert!(response.field(field).is_some(), "{field}");
        }
    }
}

#[tokio::test]
async fn any_answer_is_an_output_and_a_server_error_counts_as_a_failure() {
    let base = serve().await;
    for (status, success, is_failure) in [
        (200, true, false),
        (302, true, false),
        (399, true, false),
        (404, false, false),
        (429, false, false),
        (500, false, true),
        (503, false, true),
    ] {
        let outputs = request(json!({"url": format!("{base}/status/{status}")}))
            .await
            .unwrap();
        assert_eq!(outputs["status_code"], Value::Int(status));
        assert_eq!(outputs["success"], Value::Bool(success), "{status}");
        assert_eq!(
            HttpRequest::new().is_failure(&outputs),
            is_failure,
            "{status}"
        );
        assert_eq!(
            outputs["response"].field("content"),
            Some(&Value::from("text here"))
        );
    }
    let outputs = request(json!({"url": format!("{base}/bytes")}))
        .await
        .unwrap();
    assert_eq!(
        outputs["response"].field("content"),
        Some(&Value::Bytes(vec![0, 159, 146, 150]))
    );
}

#[tokio::test]
async fn no_answer_is_an_error_that_shows_no_secret() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let hang = serve().await.replace("http://", "http://user:hunter2@");
    for (url, reason) in [
        (
            format!("http://user:hunter2@127.0.0.1:{free}/x?token=hunter2#hunter2"),
            "refused",
        ),
        (
            format!("{hang}/hang?api_key=hunter2"),
            "no answer within 50ms",
        ),
    ] {
        let error = request(json!({"url": url, "timeout": 0.05}))
            .await
            .unwrap_err();
        assert_eq!(error.error_type(), "NodeExecutionError");
        let text = format!("{error} {error:?}");
        assert!(
            text.contains(reason) && text.contains("127.0.0.1"),
            "{text}"
        );
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn a_wrong_input_is_named() {
    for (inputs, error) in [
        (json!({}), "url is missing"),
        (
            json!({"url": "hunter2"}),
            "url: relative URL without a base",
        ),
        (
            json!({"url": "ftp://a/"}),
            "url: allowed is http:// or https://",
        ),
        (
            json!({"url": "http://a/", "headers": ["x"]}),
            "headers is a list, allowed is a map",
        ),
        (
            json!({"url": "http://a/", "headers": {"a": "b\nc"}}),
            "headers.a: not a header's value",
        ),
        (
            json!({"url": "http://a/", "json": 1, "data": "x"}),
            "json and data exclude each other",
        ),
        (
            json!({"url": "http://a/", "verb": "GET"}),
            "unknown key \"verb\"",
        ),
    ] {
        let found = request(inputs).await.unwrap_err();
        assert_eq!(found.to_string(), error);
        assert!(matches!(found, NodeError::Input(_)));
    }
}

#[tokio::test]
async fn the_timeout_of_a_plan_is_the_limit_of_the_request() {
    let mut builder = WorkflowBuilder::new();
    let url = format!("{}/hang", serve().await);
    builder
        .add_node(
            "HTTPRequestNode",
            "n",
            json!({"url": url, "timeout": "50ms"}),
        )
        .unwrap();
    let error = builder
        .get_node("n")
        .unwrap()
        .execute(Map::new())
        .await
        .unwrap_err();
    assert!(
        error.to_string().ends_with("no answer within 50ms"),
        "{error}"
    );
}

#[tokio::test]
async fn a_request_that_cannot_be_built_is_a_wrong_input_and_no_failure_of_the_server() {
    // Longer than any address may be.
    let params = json!({"secret": "x".repeat(70_000)});
    let error = request(json!({"url": "http://127.0.0.1:1/", "params": params})).await;
    let Err(NodeError::Input(message)) = error else {
        panic!("{error:?}")
    };
    assert!(
        message.starts_with("GET http://127.0.0.1:1/: no request: "),
        "{message}"
    );
    assert!(!message.contains("xxx"), "{message}");
}

#[tokio::test]
async fn a_redirect_to_another_scheme_is_a_failure_of_the_server() {
    let url = format!("{}/elsewhere", serve().await);
    let error = request(json!({"url": url})).await.unwrap_err();
    assert!(matches!(error, NodeError::Execution { .. }), "{error:?}");
    assert!(error.to_string().contains(": no answer: "), "{error}");
}
