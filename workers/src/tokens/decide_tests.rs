use chrono::TimeDelta;
use common::ids::RequestId;
use common::messages::tokens::QueueSettings;
use uuid::Uuid;

use super::super::model::{CONCERT, World, at, user};
use super::*;

fn request(n: u128) -> RequestId {
    RequestId(Uuid::from_u128(n))
}

fn join(id: u128, buyer: u128) -> TokenCommand {
    TokenCommand::Issue(Issue {
        request_id: request(id),
        request_hash: None,
        user_id: user(buyer),
        concert_id: CONCERT,
    })
}

fn leave(id: u128, buyer: u128, token: u128) -> TokenCommand {
    TokenCommand::Leave(Leave {
        request_id: request(id),
        request_hash: None,
        user_id: user(buyer),
        concert_id: CONCERT,
        token_id: request(token).into(),
    })
}

fn configure(id: u128, settings: QueueSettings) -> TokenCommand {
    TokenCommand::Configure(Configure {
        request_id: request(id),
        request_hash: None,
        user_id: None,
        concert_id: CONCERT,
        settings,
    })
}

fn state_is(state: QueueState) -> QueueSettings {
    QueueSettings { state: Some(state), ..QueueSettings::default() }
}

fn max_active_is(max_active: i64) -> QueueSettings {
    QueueSettings { max_active: Some(max_active), ..QueueSettings::default() }
}

/// What a decision comes to: the token's id, whether it is new, its position (0: inside); or left, configured, or the slug.
fn short(decision: &Decision) -> String {
    match decision {
        Decision::Issued(ticket) => {
            let position = match ticket.standing {
                Standing::Active { .. } => 0,
                Standing::Waiting { position } => position,
            };
            let made = if ticket.created { "new" } else { "same" };
            format!("{made} {} at {position}", ticket.token_id.0.as_u128())
        }
        Decision::Left(..) => "left".to_owned(),
        Decision::Configured(_) => "configured".to_owned(),
        Decision::Refused(problem) => problem.slug.as_str().to_owned(),
    }
}

/// Runs commands as one batch, and in another world one by one: it must not matter how the log is cut.
fn run(world: &mut World, commands: &[TokenCommand]) -> Vec<String> {
    let mut apart = world.clone();
    let one_by_one: Vec<_> = commands.iter().flat_map(|command| apart.apply(std::slice::from_ref(command))).collect();
    let together = world.apply(commands);
    assert_eq!(together, one_by_one);
    assert_eq!(world.tokens, apart.tokens);
    assert_eq!(world.queue, apart.queue);
    together.iter().map(short).collect()
}

#[test]
fn a_join_that_finds_room_is_inside_at_once_and_the_others_wait_in_order() {
    let mut world = World::new(600, 2, 10);
    let told = run(&mut world, &[join(1, 1), join(2, 2), join(3, 3), join(4, 4)]);
    assert_eq!(told, ["new 1 at 0", "new 2 at 0", "new 3 at 1", "new 4 at 2"]);
    let Decision::Issued(ticket) = &world.apply(&[join(5, 1)])[0] else { panic!("a ticket") };
    assert_eq!(ticket.standing, Standing::Active { expires_at: at(0) + TimeDelta::seconds(600) });
    world.advance(100_000);
    assert_eq!(run(&mut world, &[join(6, 3), join(7, 4)]), ["same 3 at 0", "same 4 at 1"]);
}

#[test]
fn the_active_limit_counts_before_the_rate_and_nobody_overtakes() {
    let mut world = World::new(600, 100, 1);
    let told = run(&mut world, &[join(1, 1), join(2, 2), leave(3, 1, 1), join(4, 1), join(5, 2)]);
    assert_eq!(told, ["new 1 at 0", "new 2 at 1", "left", "new 4 at 1", "same 2 at 0"]);
}

#[test]
fn a_buyer_has_one_live_token_and_an_ended_one_is_replaced() {
    let mut world = World::new(600, 100, 100);
    assert_eq!(run(&mut world, &[join(1, 1), join(2, 1)]), ["new 1 at 0", "same 1 at 0"]);
    // Its time is over, and no tick has looked yet.
    world.advance(600_000_000);
    assert_eq!(run(&mut world, &[leave(3, 1, 1), join(4, 1)]), ["queue-token-not-found", "new 4 at 0"]);
    let ended = &world.tokens[0];
    assert_eq!((ended.status, ended.ended_at), (TokenStatus::Expired, Some(at(600_000_000))));
    world.complete(user(1));
    assert_eq!(run(&mut world, &[join(5, 1)]), ["new 5 at 0"]);
    assert_eq!(world.tokens.len(), 3);
}

#[test]
fn who_leaves_makes_room_in_the_line_and_only_with_their_own_live_token() {
    let mut world = World::new(1, 1, 100);
    run(&mut world, &[join(1, 1), join(2, 2), join(3, 3), join(4, 4)]);
    let told = run(&mut world, &[leave(5, 2, 3), leave(6, 3, 3), leave(7, 3, 3), join(8, 4), join(9, 2)]);
    assert_eq!(told, ["queue-token-not-found", "left", "queue-token-not-found", "same 4 at 2", "same 2 at 1"]);
    assert_eq!(
        run(&mut world, &[join(10, 3), join(11, 4), leave(12, 2, 2), join(13, 3)]),
        ["new 10 at 3", "same 4 at 2", "left", "same 10 at 2"]
    );
    world.advance(120_000_000);
    assert_eq!(run(&mut world, &[join(14, 4), join(15, 3)]), ["same 4 at 0", "same 10 at 1"]);
}

#[test]
fn each_state_of_the_queue_joins_and_admits_as_it_says() {
    for (state, joins, admits) in [
        (QueueState::Open, true, true),
        (QueueState::Paused, true, false),
        (QueueState::Draining, false, true),
        (QueueState::Closed, false, false),
    ] {
        let mut world = World::new(600, 100, 1);
        run(&mut world, &[join(1, 1), join(2, 2), configure(3, state_is(state)), leave(4, 1, 1)]);
        let inside = world.tokens[1].status == TokenStatus::Active;
        assert_eq!(inside, admits, "{state:?}");
        let live = format!("same 2 at {}", i32::from(!admits));
        let new = if joins { "new 6 at" } else { "queue-closed" };
        let told = run(&mut world, &[join(5, 2), join(6, 6)]);
        assert_eq!((&told[0], told[1].starts_with(new)), (&live, true), "{state:?} {told:?}");
    }
}

#[test]
fn settings_out_of_range_change_nothing_and_say_what_is_wrong() {
    let mut world = World::new(600, 100, 1);
    let before = world.queue.clone();
    let wrong = |member: &str, value: i64| {
        let json = serde_json::json!({ member: value });
        configure(1, serde_json::from_value(json).unwrap())
    };
    let cases = [("rate_per_minute", 0), ("burst", 100_001), ("max_active", -1), ("active_seconds", 4)];
    for (member, value) in cases {
        let [Decision::Refused(problem)] = &world.apply(&[wrong(member, value)])[..] else { panic!("refused") };
        assert_eq!(problem.slug, Slug::InvalidRequest);
        assert_eq!(problem.members["errors"][0]["pointer"], format!("/{member}"));
    }
    assert_eq!(run(&mut world, &[configure(1, QueueSettings::default())]), ["invalid-request"]);
    assert_eq!(world.queue, before);
}

#[test]
fn an_operator_is_told_the_queue_as_it_is_after_the_change() {
    let mut world = World::new(60, 2, 10);
    run(&mut world, &[join(1, 1), join(2, 2), join(3, 3)]);
    world.advance(500_000);
    run(&mut world, &[join(4, 4), join(5, 5)]);
    world.advance(1_500_000);
    let commands = [leave(6, 1, 1), leave(7, 4, 4), configure(8, max_active_is(1))];
    let Decision::Configured(body) = &world.apply(&commands)[2] else { panic!("configured") };
    // Two seconds earned two: with the first command 3 and 4 came in; 4 left again, which is a place for 5 but no credit.
    assert_eq!((body.waiting, body.active, body.joined_total, body.admitted_total), (1, 2, 5, 4));
    assert_eq!((body.oldest_wait_seconds, body.admitted_per_minute), (Some(1), 4));
    world.advance(59_000_000);
    let Decision::Configured(body) = &world.apply(&[configure(9, max_active_is(3))])[0] else { panic!("configured") };
    assert_eq!((body.waiting, body.active, body.oldest_wait_seconds), (0, 3, None));
    assert_eq!(body.admitted_per_minute, 3);
}

#[test]
fn what_was_earned_at_the_old_rate_stays_and_the_new_one_counts_from_now() {
    let mut world = World::new(60, 2, 100);
    run(&mut world, &[join(1, 1), join(2, 2), join(3, 3), join(4, 4)]);
    world.advance(999_999);
    let faster = QueueSettings { rate_per_minute: Some(600), ..QueueSettings::default() };
    run(&mut world, &[configure(5, faster)]);
    // The next one a microsecond later, and the one after it 100,000 µs after that, but for what the microsecond was worth more.
    for (us, admitted) in [(0, 2), (1, 3), (99_999, 3), (1, 4)] {
        world.advance(us);
        world.tick();
        assert_eq!(world.admitted(), admitted);
    }
}

#[test]
fn nobody_knows_such_a_buyer_or_such_a_concert() {
    let mut state = State::default();
    state.unknown_users.insert(user(1));
    let clock = Clock { asked_at: at(0), now: at(0) };
    assert_eq!(short(&decide(&mut state, &join(1, 1), clock)), "user-not-found");
    assert_eq!(short(&decide(&mut state, &join(2, 2), clock)), "concert-not-found");
    assert_eq!(short(&decide(&mut state, &leave(3, 2, 1), clock)), "concert-not-found");
    assert_eq!(short(&decide(&mut state, &configure(4, max_active_is(1)), clock)), "concert-not-found");
}

#[test]
fn a_token_says_when_its_buyer_joined_in_milliseconds_and_never_in_the_future() {
    let (earlier, later) = (at(1_234_567), at(9_876_543));
    assert_eq!(joined_at(Clock { asked_at: earlier, now: later }), at(1_234_000));
    assert_eq!(joined_at(Clock { asked_at: later, now: earlier }), at(1_234_000));
}
