//! Below the calls: what a connection carries besides one whole, well-formed request.

use boxoffice_tests::setting;
use boxoffice_tests::wait::s;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SIGN_UP: &str = "POST /v1/users HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n\
    {\"name\":\"x\"}";
const CATALOGUE: &str = "GET /v1/concerts?limit=1 HTTP/1.1\r\nhost: x\r\n\r\n";

/// A connection of one's own, on which these bytes were sent.
async fn sent(bytes: &str) -> TcpStream {
    let url = setting("BOXOFFICE_URL");
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address).await.expect("the api listens");
    stream.write_all(bytes.as_bytes()).await.expect("the api reads");
    stream
}

/// What comes until it has `wanted` so many times, or the other side closes. The connection stays open meanwhile.
async fn received(stream: &mut TcpStream, wanted: &str, times: usize) -> String {
    let mut bytes = Vec::new();
    let reading = async {
        while String::from_utf8_lossy(&bytes).matches(wanted).count() < times {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                break;
            }
        }
    };
    let in_time = tokio::time::timeout(s(10), reading).await.is_ok();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(in_time, "{times} of {wanted:?} wanted, and this came: {text:?}");
    text
}

#[tokio::test]
async fn an_answer_comes_whatever_follows_its_request() {
    let begun = &CATALOGUE[..20];
    for behind in ["", "\n", "\r\n", "\r\n\r\n", begun, "nonsense"] {
        let mut stream = sent(&format!("{SIGN_UP}{behind}")).await;
        let answer = received(&mut stream, "user_secret", 1).await;
        assert!(answer.starts_with("HTTP/1.1 201 ") && answer.contains("user_secret"), "{behind:?}: {answer:?}");
    }
}

#[tokio::test]
async fn requests_sent_without_waiting_are_answered_in_order() {
    let mut stream = sent(&format!("{CATALOGUE}{SIGN_UP}\r\n{CATALOGUE}{}", &CATALOGUE[..20])).await;
    let answers = received(&mut stream, "next_cursor", 2).await;
    let heads: Vec<&str> = answers.lines().filter_map(|line| line.split("HTTP/1.1 ").nth(1)).collect();
    let statuses: Vec<&str> = heads.iter().filter_map(|head| head.split(' ').next()).collect();
    assert_eq!(statuses, ["200", "201", "200"], "{answers:?}");
    // The last one goes on where it was broken off.
    stream.write_all(&CATALOGUE.as_bytes()[20..]).await.unwrap();
    assert!(received(&mut stream, "next_cursor", 1).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn what_is_no_http_is_told_so() {
    let lengths = SIGN_UP.replace("content-length: 12", "content-length: 12\r\ncontent-length: 13");
    let chunk = SIGN_UP.replace("content-length: 12", "transfer-encoding: chunked").replace("{\"name\"", "zz\r\n");
    let many = CATALOGUE.replace("host: x\r\n", &"x-y: z\r\n".repeat(120));
    let long = CATALOGUE.replace("limit=1", &"x".repeat(66_000));
    for (what, request) in [
        ("two lengths", lengths.as_str()),
        ("a chunk without a size", &chunk),
        ("a method of other letters", "G@T / HTTP/1.1\r\nhost: x\r\n\r\n"),
        ("many headers", &many),
        ("a long path", &long),
    ] {
        let answer = received(&mut sent(request).await, "\r\n\r\n", 1).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{what}: {answer:?}");
    }
}
