//! One HTTP/1.1 connection that costs next to nothing: the load generator shares the machine with what it measures.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const READ_BYTES: usize = 16 * 1024;
const HEADERS_MAX: usize = 32;
/// A larger answer is an error: nothing that is measured answers so much.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A kept-alive connection; one request at a time.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    request: Vec<u8>,
}

/// An answer, as long as the connection is not used again.
pub(crate) struct Answer<'a> {
    /// The status code.
    pub(crate) status: u16,
    /// Value of `ETag`, if there is one.
    pub(crate) etag: Option<&'a str>,
    /// The body's bytes.
    pub(crate) body: &'a [u8],
}

/// A request to be written.
pub(crate) struct Request<'a> {
    /// GET, POST, …
    pub(crate) method: &'a str,
    /// Path and query.
    pub(crate) path: &'a str,
    /// Further headers, name and value.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    /// A JSON body; empty for none.
    pub(crate) body: &'a str,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(READ_BYTES), request: Vec::with_capacity(2_048) })
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn call(&mut self, request: &Request<'_>) -> io::Result<Answer<'_>> {
        self.request.clear();
        write(&mut self.request, request);
        self.stream.write_all(&self.request).await?;
        self.buffer.clear();
        let head = loop {
            self.read_more().await?;
            if let Some(head) = parse(&self.buffer)? {
                break head;
            }
        };
        let total = head.bytes + head.body_bytes;
        if total > ANSWER_BYTES_MAX {
            return Err(invalid("the answer is too large"));
        }
        while self.buffer.len() < total {
            self.read_more().await?;
        }
        let etag = head.etag.and_then(|(from, to)| std::str::from_utf8(&self.buffer[from..to]).ok());
        Ok(Answer { status: head.status, etag, body: &self.buffer[head.bytes..total] })
    }

    async fn read_more(&mut self) -> io::Result<()> {
        self.buffer.reserve(READ_BYTES);
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

fn write(out: &mut Vec<u8>, request: &Request<'_>) {
    let Request { method, path, headers, body } = request;
    for part in [method, " ", path, " HTTP/1.1\r\nhost: bench\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in *headers {
        for part in [name, ": ", value, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    if !body.is_empty() {
        out.extend_from_slice(
            format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()).as_bytes(),
        );
    } else if *method == "POST" {
        out.extend_from_slice(b"content-length: 0\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body.as_bytes());
}

struct Head {
    status: u16,
    bytes: usize,
    body_bytes: usize,
    /// Where the value of `ETag` begins and ends.
    etag: Option<(usize, usize)>,
}

/// The head of an answer; None: there is more to come.
fn parse(buffer: &[u8]) -> io::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(buffer).map_err(|error| invalid(&error.to_string()))?;
    let httparse::Status::Complete(bytes) = parsed else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    let (mut body_bytes, mut etag) = (None, None);
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            body_bytes = std::str::from_utf8(header.value).ok().and_then(|value| value.parse().ok());
        } else if header.name.eq_ignore_ascii_case("etag") {
            let begin = header.value.as_ptr().addr() - buffer.as_ptr().addr();
            etag = Some((begin, begin + header.value.len()));
        }
    }
    let body_bytes = match (status, body_bytes) {
        (204 | 304, _) => 0,
        (_, Some(bytes)) => bytes,
        _ => return Err(invalid("an answer without a content-length")),
    };
    Ok(Some(Head { status, bytes, body_bytes, etag }))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_it_is_whole() {
        let text = b"HTTP/1.1 201 Created\r\nETag: W/\"7\"\r\nContent-Length: 2\r\n\r\n{}";
        assert!(parse(&text[..30]).unwrap().is_none());
        let head = parse(text).unwrap().unwrap();
        assert_eq!((head.status, head.body_bytes, text.len() - head.bytes), (201, 2, 2));
        let (from, to) = head.etag.unwrap();
        assert_eq!(&text[from..to], b"W/\"7\"");
        assert_eq!(parse(b"HTTP/1.1 304 Not Modified\r\n\r\n").unwrap().unwrap().body_bytes, 0);
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
