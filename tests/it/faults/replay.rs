//! The whole log, read again from its beginning.

use boxoffice_tests::log::{self, GROUPS, RESULTS};
use boxoffice_tests::processes::Processes;
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, PRICE, Show, Way, audit, database};
use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::{WORKERS, nothing_is_under_way, the_log_moves, workers_are_ready};

/// `kafka-consumer-groups --reset-offsets --to-earliest` on each group, then a restart: no row of any table changes.
#[tokio::test]
async fn b_10_a_full_replay_changes_nothing() {
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    // Something of everything, whatever ran before.
    let show = Show::new(&api).await;
    let buyer = show.buyer(3 * PRICE).await;
    let [one, two, three] = show.pick().await;
    buyer.hold(&show, &[three], Way::Wait).await.ok(201);
    let payment = buyer.buy(&show, &[one], Way::Wait).await.ok(201);
    buyer.enter(show.concert_id).await;
    buyer.buy(&show, &[two], Way::Wait).await.ok(201);
    buyer.refund(&payment, Way::Wait).await.ok(201);
    // Tokens and holds end by themselves as time passes: those that still could are ended now.
    nothing_is_under_way(&pool).await;
    log::caught_up(s(60)).await;
    audit::audit_at_rest(&pool).await;

    for (name, _) in WORKERS {
        processes.end(name, "TERM").await;
    }
    let (before, ends) = (database::checksums(&pool).await, ends());
    let applied = database::applied(&pool).await;
    let search: DateTime<Utc> =
        sqlx::query_scalar("SELECT all_ended_before FROM overdue_search").fetch_one(&pool).await.unwrap();
    let told: i64 = log::ends_of(RESULTS).values().sum();
    // Another test may have let the log lose its beginning.
    let sources: Vec<(String, i32, i64)> =
        sqlx::query_as(r#"SELECT topic, partition, "offset" FROM requests"#).fetch_all(&pool).await.unwrap();
    let beginnings: log::Offsets = GROUPS.iter().flat_map(|(topic, _)| log::beginnings_of(topic)).collect();
    let requests = sources.into_iter().filter(|(topic, partition, at)| *at >= beginnings[&(topic.clone(), *partition)]);
    let requests = i64::try_from(requests.count()).unwrap();
    assert!(requests > 10 && before.len() >= 13, "{requests} requests, {before:?}");
    for (topic, group) in GROUPS {
        let reset = ["--reset-offsets", "--to-earliest", "--execute", "--group", group, "--topic", topic];
        let output = processes.kafka("kafka-consumer-groups", &reset).await;
        assert!(output.contains(topic), "{output}");
        assert!(log::committed(topic, group).iter().all(|(id, offset)| *offset == beginnings[id]), "{output}");
    }
    processes.up(1).await;
    workers_are_ready(&api).await;
    log::caught_up(s(120)).await;

    let retold = log::ends_of(RESULTS).values().sum::<i64>() - told;
    assert!(retold >= requests, "{retold} outcomes of {requests} were told again: the log was read again");
    let mut after = database::checksums(&pool).await;
    // A hold with `pay: true` that comes again publishes its payment again, so the payments log itself is longer now, and how far
    // it is applied with it. That table alone is compared by partition, with what its log has. And where the search for overdue holds begins
    // moves on as the time of holds passes, whoever replays: that one by where it is.
    let (mut before, tables) = (before, after.len());
    for moves in ["applied_offsets", "overdue_search"] {
        before.remove(moves);
        after.remove(moves);
    }
    assert_eq!((after.len(), &after), (tables - 2, &before), "rows and checksum of each table");
    search_has_gone_on_from(&pool, search).await;
    let (applied_now, ends_now) = (database::applied(&pool).await, self::ends());
    for (partition, next) in &applied_now {
        let wanted = if ends_now[partition] == ends[partition] { applied[partition] } else { ends_now[partition] };
        assert_eq!(*next, wanted, "{partition:?}");
    }
    audit::audit_at_rest(&pool).await;
    the_log_moves(&api).await;
}

/// The search for overdue holds begins where it did, or where a hold has ended whose time was over a minute ago.
async fn search_has_gone_on_from(pool: &PgPool, before: DateTime<Utc>) {
    let sql = "SELECT all_ended_before, all_ended_before = $1 OR all_ended_before > $1 AND EXISTS (
                   SELECT FROM reservations WHERE hold_expires_at = all_ended_before AND status <> 'HELD'
                                                  AND hold_expires_at < now() - interval '1 minute')
               FROM overdue_search";
    let (now, is_right): (DateTime<Utc>, bool) = sqlx::query_as(sql).bind(before).fetch_one(pool).await.unwrap();
    assert!(is_right, "the search for overdue holds began at {before}, and now at {now}");
}

fn ends() -> log::Offsets {
    GROUPS.iter().flat_map(|(topic, _)| log::ends_of(topic)).collect()
}
