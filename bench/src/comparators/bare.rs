pub(crate) async fn serve(listen: std::net::SocketAddr) -> anyhow::Result<()> {
    let l = tokio::net::TcpListener::bind(listen).await?;
    axum::serve(l, axum::Router::new().fallback(|| async { "{}" })).await?;
    Ok(())
}
