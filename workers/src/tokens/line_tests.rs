//! The promises of the queue, under whatever comes: random joins, leaves, payments, settings, pauses, batches and ticks.

use common::ids::RequestId;
use common::messages::tokens::{Configure, Issue, Leave, TokenCommand};
use proptest::prelude::*;
use uuid::Uuid;

use super::super::bucket::ADMISSION;
use super::super::decide::Decision;
use super::super::model::{CONCERT, World, user};
use super::*;

const BUYERS: u128 = 12;

/// What may come next.
#[derive(Debug, Clone)]
enum Step {
    Batch(Vec<Asked>),
    Tick,
    Pass(i64),
    Pay(u128),
    /// Another worker's transaction, which began a while ago.
    LateTick(i64),
}

#[derive(Debug, Clone)]
enum Asked {
    Join(u128),
    Leave(u128),
    Configure(QueueSettings),
}

fn asked() -> impl Strategy<Value = Asked> {
    prop_oneof![
        10 => (0..BUYERS).prop_map(Asked::Join),
        3 => (0..BUYERS).prop_map(Asked::Leave),
        2 => settings().prop_map(Asked::Configure),
    ]
}

fn settings() -> impl Strategy<Value = QueueSettings> {
    let states = [QueueState::Open, QueueState::Open, QueueState::Paused, QueueState::Draining, QueueState::Closed];
    let sixth = |values: Vec<i64>| prop::option::weighted(0.4, prop::sample::select(values));
    let state = prop::option::weighted(0.4, prop::sample::select(states.to_vec()));
    (sixth(vec![1, 60, 600, 77_777]), sixth(vec![1, 2, 5]), sixth(vec![0, 1, 3, 8]), sixth(vec![5, 20]), state)
        .prop_filter("something changes", |all| *all != (None, None, None, None, None))
        .prop_map(|(rate_per_minute, burst, max_active, active_seconds, state)| QueueSettings {
            rate_per_minute,
            burst,
            max_active,
            active_seconds,
            state,
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(asked(), 1..12).prop_map(Step::Batch),
        3 => Just(Step::Tick),
        2 => (0_i64..20_000_000).prop_map(Step::Pass),
        3 => (0_i64..300_000).prop_map(Step::Pass),
        2 => (0..BUYERS).prop_map(Step::Pay),
        1 => (0_i64..1_000_000).prop_map(Step::LateTick),
    ]
}

/// A world, and what an auditor notes down beside it.
struct Audit {
    world: World,
    requests: u128,
    /// For each admission, what the rates since the beginning had earned by then.
    admissions: Vec<i64>,
    earned: i64,
    earned_until: DateTime<Utc>,
    /// The largest burst since the n-th admission is at most this.
    bursts: Vec<i64>,
}

impl Audit {
    fn new() -> Self {
        let world = World::new(60, 3, 4);
        let earned_until = world.now;
        Self { world, requests: 0, admissions: Vec::new(), earned: 0, earned_until, bursts: Vec::new() }
    }

    fn earn(&mut self) {
        let elapsed = (self.world.now - self.earned_until).num_microseconds().unwrap();
        self.earned += elapsed * self.world.queue.rate_per_minute;
        self.earned_until = self.world.now;
    }

    fn command(&mut self, asked: &Asked) -> TokenCommand {
        self.requests += 1;
        let (request_id, concert_id, request_hash) = (RequestId(Uuid::from_u128(self.requests)), CONCERT, None);
        match asked {
            Asked::Join(buyer) => {
                TokenCommand::Issue(Issue { request_id, request_hash, user_id: user(*buyer), concert_id })
            }
            Asked::Leave(buyer) => {
                let own = |token: &&Token| token.user_id == user(*buyer);
                let last = self.world.tokens.iter().rfind(own).map(|token| token.token_id);
                let token_id = last.unwrap_or(request_id.into());
                TokenCommand::Leave(Leave { request_id, request_hash, user_id: user(*buyer), concert_id, token_id })
            }
            Asked::Configure(settings) => {
                let settings = settings.clone();
                TokenCommand::Configure(Configure { request_id, request_hash, user_id: None, concert_id, settings })
            }
        }
    }

    fn step(&mut self, step: &Step) {
        self.earn();
        let active_before = self.active();
        let mut limits = vec![self.world.queue.max_active, active_before];
        let mut burst = self.world.queue.burst;
        match step {
            Step::Batch(asked) => {
                let commands: Vec<TokenCommand> = asked.iter().map(|asked| self.command(asked)).collect();
                for asked in asked {
                    if let Asked::Configure(settings) = asked {
                        limits.extend(settings.max_active);
                        burst = burst.max(settings.burst.unwrap_or(0));
                    }
                }
                self.batch(&commands);
            }
            Step::Tick => self.world.tick(),
            Step::Pass(us) => self.world.advance(*us),
            Step::Pay(buyer) => {
                self.world.complete(user(*buyer));
                // Long enough for another count to be due, or else the batch's length decides whether it is.
                self.world.advance(20);
            }
            Step::LateTick(us) => {
                self.world.advance(-*us);
                self.world.tick();
                self.world.advance(*us);
            }
        }
        self.note_admissions(burst);
        assert!(self.active() <= limits.into_iter().max().unwrap(), "more inside than the limit");
        self.check_line();
        self.check_windows();
    }

    /// One batch must come to the same as the same commands one by one, and the positions told must be those that there are.
    fn batch(&mut self, commands: &[TokenCommand]) {
        let mut apart = self.world.clone();
        let mut one_by_one = Vec::new();
        for command in commands {
            let decision = apart.apply(std::slice::from_ref(command)).remove(0);
            check_told(&apart, &decision);
            one_by_one.push(decision);
        }
        let together = self.world.apply(commands);
        if self.world.rows_max > 1 {
            assert_eq!(together, one_by_one);
            assert_eq!(self.world.tokens, apart.tokens);
            assert_eq!(self.world.queue, apart.queue);
        }
    }

    fn active(&self) -> i64 {
        count(self.world.with_status(TokenStatus::Active).count())
    }

    fn note_admissions(&mut self, burst: i64) {
        for known in &mut self.bursts {
            *known = (*known).max(burst);
        }
        let admitted = self.world.tokens.iter().filter_map(|token| token.admitted_at);
        for admitted_at in admitted.skip(self.admissions.len()) {
            // A late transaction admits in its own past, when less had been earned.
            let since = (self.world.now - admitted_at).num_microseconds().unwrap();
            self.admissions.push(self.earned - since * self.world.queue.rate_per_minute);
            self.bursts.push(burst);
        }
        assert_eq!(self.world.events, self.admissions.len());
        assert_eq!(self.world.queue.admitted_total, count(self.admissions.len()));
    }

    /// Places are dense, nobody waits whom somebody behind has overtaken, and nobody has two live tokens.
    fn check_line(&self) {
        let tokens = &self.world.tokens;
        for (index, token) in tokens.iter().enumerate() {
            assert_eq!(token.seq, count(index) + 1);
            assert!(token.status != TokenStatus::Waiting || token.seq > self.world.queue.admitted_seq, "overtaken");
        }
        assert_eq!(self.world.queue.next_seq, count(tokens.len()) + 1);
        let last_admitted = tokens.iter().rfind(|token| token.admitted_at.is_some()).map_or(0, |token| token.seq);
        assert_eq!(self.world.queue.admitted_seq, last_admitted);
        let live = tokens.iter().filter(|token| token.ended_at.is_none());
        let mut buyers: Vec<UserId> = live.map(|token| token.user_id).collect();
        buyers.sort_unstable();
        assert!(buyers.windows(2).all(|pair| pair[0] != pair[1]), "two live tokens of one buyer");
    }

    /// Over every window from one admission to another: admitted ≤ rate × time + burst.
    fn check_windows(&self) {
        for (first, earned_before) in self.admissions.iter().enumerate() {
            for (last, earned) in self.admissions.iter().enumerate().skip(first) {
                let admitted = count(last - first + 1);
                assert!(
                    admitted * ADMISSION <= earned - earned_before + self.bursts[first] * ADMISSION,
                    "{admitted} admitted in a window that had earned fewer"
                );
            }
        }
    }
}

fn check_told(world: &World, decision: &Decision) {
    match decision {
        Decision::Issued(ticket) => {
            let before = world.with_status(TokenStatus::Waiting).filter(|token| token.seq <= ticket.seq).count();
            let standing = match ticket.standing {
                Standing::Active { .. } => 0,
                Standing::Waiting { position } => position,
            };
            let waits = matches!(ticket.standing, Standing::Waiting { .. });
            assert_eq!(standing, if waits { count(before) } else { 0 });
            assert!(!waits || before > 0);
        }
        Decision::Configured(body) => {
            assert_eq!(body.waiting, count(world.with_status(TokenStatus::Waiting).count()));
            assert_eq!(body.active, count(world.with_status(TokenStatus::Active).count()));
            let oldest = world.with_status(TokenStatus::Waiting).next();
            assert_eq!(body.oldest_wait_seconds, oldest.map(|token| (world.now - token.issued_at).num_seconds()));
        }
        Decision::Left(..) | Decision::Refused(_) => {}
    }
}

#[test]
fn a_join_is_not_admitted_before_those_who_were_not_loaded() {
    for (front_complete, admitted) in [(false, 0), (true, 1)] {
        let world = World::new(60, 3, 4);
        let mut line = Line::new(world.queue.clone(), world.now);
        let counts = Counts { active: Some(0), ..Counts::default() };
        line.begin(Loaded { front_complete, counts, admissions_max: 10, ..Loaded::default() });
        line.join(TokenId(Uuid::from_u128(1)), user(1), world.now, None);
        line.admit();
        assert_eq!(line.queue.admitted_total, admitted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn admission_is_exact_and_in_order_whatever_comes(
        steps in prop::collection::vec(step(), 1..60),
        rows_max in prop::sample::select(vec![1, 5_000]),
    ) {
        let mut audit = Audit::new();
        audit.world.rows_max = rows_max;
        for step in &steps {
            audit.step(step);
        }
    }
}
