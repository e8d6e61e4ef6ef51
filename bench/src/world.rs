//! What a scenario needs before it begins: concerts, buyers, tokens, money. Buyers are written to the database and their access tokens
//! signed here, with the system's own keys; all else goes through the api.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::{TimeDelta, Utc};
use common::ids::{ScheduleId, UserId};
use common::keys::{AccessClaims, AccessTokens, QueueTokens};
use common::seating::Layout;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::http::{Connection, Request};
use crate::load::at_once;

/// Seats that one schedule can have.
pub(crate) const SEATS_MAX: usize = 200_000;
const CALLERS: usize = 128;
const SESSIONS_END_WITHIN: Duration = Duration::from_secs(10);
const SESSIONS_LOOK: Duration = Duration::from_millis(20);
const ACCESS_TOKEN_SECONDS: i64 = 86_400;
const SEATS_PER_ROW: i64 = 50;
const ROWS_PER_SECTION: i64 = 20;

/// The system that is measured.
pub(crate) struct World {
    /// The api.
    pub(crate) api: SocketAddr,
    pub(crate) pool: PgPool,
    pub(crate) access: AccessTokens,
    pub(crate) queue_tokens: QueueTokens,
    admin: String,
}

/// A buyer with what he sends.
#[derive(Clone)]
pub(crate) struct Buyer {
    pub(crate) user_id: UserId,
    /// The value of `Authorization`.
    pub(crate) authorization: String,
    /// The value of `Queue-Token`; empty before joining.
    pub(crate) queue_token: String,
}

/// A concert with schedules that are all alike.
pub(crate) struct House {
    pub(crate) concert_id: i64,
    pub(crate) schedules: Vec<i64>,
}

impl House {
    /// The id of the `n`-th seat (from 0) of a schedule.
    pub(crate) fn seat(schedule: i64, n: i64) -> i64 {
        Layout::new(ScheduleId(schedule), Vec::new()).seat_at(n).0
    }
}

/// What is measured and what is not: a queue that lets everybody in.
pub(crate) fn open_queue() -> Value {
    json!({"rate_per_minute": 1_000_000, "burst": 100_000, "max_active": 1_000_000, "active_seconds": 86_400})
}

impl World {
    pub(crate) fn new(
        api: SocketAddr,
        pool: PgPool,
        access: AccessTokens,
        queue_tokens: QueueTokens,
        admin_key: &str,
    ) -> Self {
        Self { api, pool, access, queue_tokens, admin: format!("Bearer {admin_key}") }
    }

    async fn operator(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let mut connection = Connection::open(self.api).await.context("the api does not answer")?;
        let headers = [("authorization", self.admin.as_str()), ("prefer", "wait=10")];
        let body = body.to_string();
        let answer = connection.call(&Request { method, path, headers: &headers, body: &body }).await?;
        let value: Value = serde_json::from_slice(answer.body).unwrap_or_default();
        ensure!(matches!(answer.status, 200 | 201), "{method} {path}: {} {value}", answer.status);
        Ok(value)
    }

    /// A concert with `schedules` schedules of `seats` seats (in whole rows), each seat at 100.
    pub(crate) async fn house(&self, schedules: usize, seats: i64, queue: Value) -> Result<House> {
        let concert = json!({"title": "bench", "max_seats_per_buyer": 20, "hold_seconds": 3_600, "queue": queue});
        let concert = self.operator("POST", "/v1/admin/concerts", &concert).await?;
        let concert_id = concert["concert_id"].as_i64().context("a concert's id")?;
        let mut made = House { concert_id, schedules: Vec::new() };
        for _ in 0..schedules {
            self.add_schedule(&mut made, seats).await?;
        }
        self.analyze().await?;
        Ok(made)
    }

    /// One schedule more, of `seats` seats (in whole rows); its id.
    pub(crate) async fn add_schedule(&self, house: &mut House, seats: i64) -> Result<i64> {
        let starts_at = (Utc::now() + TimeDelta::days(30)).to_rfc3339();
        let body = json!({"starts_at": starts_at, "sections": sections(seats)});
        let path = format!("/v1/admin/concerts/{}/schedules", house.concert_id);
        let schedule = self.operator("POST", &path, &body).await?;
        if schedule["total_seats"].as_i64() != Some(seats) {
            bail!("{seats} seats were asked for: {schedule}");
        }
        let id = schedule["schedule_id"].as_i64().context("a schedule's id")?;
        house.schedules.push(id);
        Ok(id)
    }

    /// Writes to disk what was filled in: else that is done while something else is measured.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        sqlx::query("CHECKPOINT").execute(&self.pool).await?;
        Ok(())
    }

    /// Right after tables were filled the planner knows nothing of them.
    pub(crate) async fn analyze(&self) -> Result<()> {
        sqlx::query("VACUUM (ANALYZE) seats, users, queue_tokens, reservations, accounts, requests")
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Gives Postgres the files of its log that one that has lived for a while has. A young one makes each anew: it writes it full of zeros
    /// before it writes into it. After a checkpoint it takes the old ones again.
    pub(crate) async fn fill_log_files(&self, files: usize) -> Result<()> {
        for _ in 0..files {
            // A file without a record is not left for the next one.
            sqlx::query("SELECT pg_logical_emit_message(false, 'bench', '')").execute(&self.pool).await?;
            sqlx::query("SELECT pg_switch_wal()").execute(&self.pool).await?;
        }
        self.checkpoint().await
    }

    /// Waits until no session of this name is left in the database: one that was left ends only when the server notices.
    pub(crate) async fn sessions_end(&self, name: &str) -> Result<()> {
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
        let begun = Instant::now();
        while sqlx::query_scalar::<_, i64>(sessions).bind(name).fetch_one(&self.pool).await? > 0 {
            ensure!(
                begun.elapsed() < SESSIONS_END_WITHIN,
                "sessions of {name} stay; what holds them? See pg_stat_activity"
            );
            tokio::time::sleep(SESSIONS_LOOK).await;
        }
        Ok(())
    }

    /// Changes a queue.
    pub(crate) async fn configure(&self, concert_id: i64, settings: &Value) -> Result<()> {
        self.operator("PATCH", &format!("/v1/admin/concerts/{concert_id}/queue"), settings).await.map(drop)
    }

    /// Buyers who have signed up.
    pub(crate) async fn buyers(&self, count: usize) -> Result<Vec<Buyer>> {
        let ids: Vec<Uuid> = sqlx::query_scalar(
            "INSERT INTO users (user_id, name) SELECT gen_random_uuid(), 'bench' FROM generate_series(1, $1) RETURNING user_id",
        )
        .bind(i64::try_from(count)?)
        .fetch_all(&self.pool)
        .await?;
        let now = Utc::now();
        Ok(ids
            .into_iter()
            .map(|id| {
                let claims = AccessClaims::new(UserId(id), now, ACCESS_TOKEN_SECONDS);
                let authorization = format!("Bearer {}", self.access.sign(&claims));
                Buyer { user_id: UserId(id), authorization, queue_token: String::new() }
            })
            .collect())
    }

    /// Buyers who are inside the concert.
    pub(crate) async fn insiders(&self, house: &House, count: usize) -> Result<Vec<Buyer>> {
        let buyers = RefCell::new(self.buyers(count).await?);
        let path = format!("/v1/concerts/{}/queue-tokens", house.concert_id);
        let hidden = ProgressBar::hidden();
        let measured = at_once(self.api, CALLERS, 0..count, &hidden, async |connection, i| {
            let authorization = buyers.borrow()[i].authorization.clone();
            let headers = [("authorization", authorization.as_str()), ("prefer", "wait=30")];
            let answer = connection.call(&Request { method: "POST", path: &path, headers: &headers, body: "" }).await?;
            let body: Value = serde_json::from_slice(answer.body).unwrap_or_default();
            if body["admitted"] == true {
                body["queue_token"].as_str().unwrap_or_default().clone_into(&mut buyers.borrow_mut()[i].queue_token);
            }
            Ok(answer.status)
        });
        measured.await?.expect(&[201])?;
        let buyers = buyers.into_inner();
        ensure!(buyers.iter().all(|buyer| !buyer.queue_token.is_empty()), "not all buyers were admitted");
        self.analyze().await?;
        Ok(buyers)
    }

    /// Gives each buyer this much money.
    pub(crate) async fn charge(&self, buyers: &[Buyer], amount: i64) -> Result<()> {
        let body = json!({"amount": amount}).to_string();
        let hidden = ProgressBar::hidden();
        let measured = at_once(self.api, CALLERS, 0..buyers.len(), &hidden, async |connection, i| {
            let headers = [("authorization", buyers[i].authorization.as_str()), ("prefer", "wait=30")];
            let request = Request { method: "POST", path: "/v1/balance/charges", headers: &headers, body: &body };
            Ok(connection.call(&request).await?.status)
        });
        measured.await?.expect(&[201]).map(drop)
    }
}

fn sections(seats: i64) -> Value {
    let rows = seats / SEATS_PER_ROW;
    let names = (0..).map(|n| format!("S{n}"));
    let sections = (0..rows).step_by(usize::try_from(ROWS_PER_SECTION).unwrap_or(1)).zip(names);
    sections
        .map(|(first, name)| {
            let rows = ROWS_PER_SECTION.min(rows - first);
            json!({"name": name, "rows": rows, "seats_per_row": SEATS_PER_ROW, "price": 100})
        })
        .collect()
}
