//! The socket on which a process is called.

use std::io;
use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};

/// How many connections may wait to be accepted; the system allows fewer (`net.core.somaxconn`, 4,096 by default). A crowd connects in one
/// moment, and who finds no place is not told: his next try comes a second later.
const BACKLOG: u32 = 65_535;

/// Listens on `address`, with room for a crowd.
///
/// # Errors
/// The address is taken, or not ours.
pub fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    bind(address).with_context(|| format!("cannot listen on {address}"))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart need not wait until the connections of before are forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    /// More than the usual backlog of 128, and few enough for a usual limit of open files.
    const CROWD: usize = 300;

    #[tokio::test]
    async fn a_crowd_connects_before_anybody_is_accepted() {
        let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let connected: Vec<_> =
            (0..CROWD).map_while(|_| TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()).collect();
        assert_eq!(connected.len(), CROWD);
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_told() {
        let first = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = first.local_addr().unwrap();
        let error = listen(address).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot listen on {address}"));
    }
}
