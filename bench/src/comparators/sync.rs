#[derive(clap::Args)]
pub(crate) struct SyncSettings {
    #[arg(long)]
    listen: std::net::SocketAddr,
}
pub(crate) async fn serve(s: SyncSettings) -> anyhow::Result<()> {
    let l = tokio::net::TcpListener::bind(s.listen).await?;
    axum::serve(l, axum::Router::new()).await?;
    Ok(())
}
