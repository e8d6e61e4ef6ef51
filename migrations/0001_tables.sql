-- One word names route, topic, worker, table and test. Who writes what stands with each table.

CREATE TYPE queue_state AS ENUM ('OPEN', 'PAUSED', 'DRAINING', 'CLOSED');
CREATE TYPE token_status AS ENUM ('WAITING', 'ACTIVE', 'COMPLETED', 'EXPIRED', 'LEFT');
CREATE TYPE seat_status AS ENUM ('AVAILABLE', 'HELD', 'SOLD');
CREATE TYPE reservation_status AS ENUM ('HELD', 'PAID', 'EXPIRED', 'CANCELLED', 'REFUNDED');
CREATE TYPE entry_kind AS ENUM ('CHARGE', 'PAYMENT', 'REFUND');
CREATE TYPE payment_status AS ENUM ('SUCCEEDED', 'REFUNDED');
CREATE TYPE payment_failure_policy AS ENUM ('keep_hold', 'release_hold');
CREATE TYPE request_status AS ENUM ('SUCCEEDED', 'FAILED');

-- The api, at sign-up (or at the first call behind a gateway). No secret is stored, only its SHA-256: it is 256 random bits.
CREATE TABLE users (
    user_id     uuid PRIMARY KEY,
    name        text NOT NULL,
    secret_hash bytea,
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- The api, for operators.
CREATE TABLE concerts (
    concert_id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title               text NOT NULL,
    time_zone           text NOT NULL,
    hold_seconds        integer NOT NULL,
    max_seats_per_buyer integer NOT NULL,
    on_payment_failure  payment_failure_policy NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT now()
);

-- The api, for operators. `sections` is the layout, from which a seat's label and price are computed:
-- [{name, rows, seats_per_row, price}], in the order of best_available. Never changed afterwards.
CREATE TABLE schedules (
    schedule_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    concert_id  bigint NOT NULL REFERENCES concerts,
    starts_at   timestamptz NOT NULL,
    sections    jsonb NOT NULL,
    total_seats integer NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX schedules_of_concert ON schedules (concert_id, starts_at);

-- The api inserts them with their schedule, the reservation worker takes them, the payment worker sells and frees them.
-- seat_id = schedule_id << 18 | place in the layout (from 1): the seats of a schedule are one range of the primary key.
-- No other index, and room on each page: a seat changes hands in place (HOT).
CREATE TABLE seats (
    seat_id        bigint PRIMARY KEY,
    schedule_id    bigint GENERATED ALWAYS AS (seat_id >> 18) STORED,
    status         seat_status NOT NULL DEFAULT 'AVAILABLE',
    reservation_id uuid
) WITH (fillfactor = 70);

-- The payment worker moves `releases` when it frees seats of a schedule, so that the reservation worker's map of
-- free seats knows when it is out of date.
CREATE TABLE seat_releases (
    schedule_id bigint PRIMARY KEY,
    releases    bigint NOT NULL
) WITH (fillfactor = 50);

-- The token worker; the row itself is made by the api with its concert. `credit` is the token bucket, in
-- 60-millionths of an admission (one microsecond at one a minute), as of `refilled_at`.
CREATE TABLE queues (
    concert_id      bigint PRIMARY KEY REFERENCES concerts,
    state           queue_state NOT NULL DEFAULT 'OPEN',
    rate_per_minute integer NOT NULL,
    burst           integer NOT NULL,
    max_active      integer NOT NULL,
    active_seconds  integer NOT NULL,
    credit          bigint NOT NULL,
    refilled_at     timestamptz NOT NULL DEFAULT now(),
    next_seq        bigint NOT NULL DEFAULT 1,
    admitted_seq    bigint NOT NULL DEFAULT 0,
    admitted_total  bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- The token worker; the payment worker completes them. token_id is the id of the request that made the token; kid names
-- the key that signed it. A token is live until ended_at is set, and a buyer has one live token a concert.
CREATE TABLE queue_tokens (
    concert_id  bigint NOT NULL,
    seq         bigint NOT NULL,
    token_id    uuid NOT NULL,
    user_id     uuid NOT NULL,
    kid         text NOT NULL,
    status      token_status NOT NULL,
    issued_at   timestamptz NOT NULL,
    admitted_at timestamptz,
    expires_at  timestamptz,
    ended_at    timestamptz,
    PRIMARY KEY (concert_id, seq)
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX queue_tokens_live ON queue_tokens (concert_id, user_id) WHERE ended_at IS NULL;
CREATE INDEX queue_tokens_active ON queue_tokens (concert_id, expires_at) WHERE status = 'ACTIVE';
CREATE INDEX queue_tokens_left ON queue_tokens (concert_id, seq) WHERE status = 'LEFT';

-- The reservation worker inserts them (HELD), the payment worker ends them. reservation_id is the id of the request that made
-- the hold, so a repeat finds its own.
CREATE TABLE reservations (
    reservation_id  uuid PRIMARY KEY,
    user_id         uuid NOT NULL,
    concert_id      bigint NOT NULL,
    schedule_id     bigint NOT NULL,
    seat_ids        bigint[] NOT NULL,
    total           bigint NOT NULL,
    status          reservation_status NOT NULL DEFAULT 'HELD',
    held_at         timestamptz NOT NULL,
    hold_expires_at timestamptz NOT NULL,
    payment_id      uuid
) WITH (fillfactor = 80);
CREATE INDEX reservations_of_user ON reservations (user_id, held_at);
CREATE INDEX reservations_held ON reservations (hold_expires_at) WHERE status = 'HELD';

-- The payment worker. `entries` counts the account's ledger entries: the last one's entry_no.
CREATE TABLE accounts (
    user_id uuid PRIMARY KEY,
    balance bigint NOT NULL CHECK (balance >= 0),
    entries bigint NOT NULL
) WITH (fillfactor = 70);

-- The payment worker. Immutable; entry_id is the id of the request that made the entry, entry_no its dense number in the account.
CREATE TABLE ledger_entries (
    user_id        uuid NOT NULL,
    entry_no       bigint NOT NULL,
    entry_id       uuid NOT NULL,
    kind           entry_kind NOT NULL,
    amount         bigint NOT NULL,
    balance_after  bigint NOT NULL CHECK (balance_after >= 0),
    reservation_id uuid,
    at             timestamptz NOT NULL,
    PRIMARY KEY (user_id, entry_no)
);

-- The payment worker. payment_id is the id of the request that paid. Balances are those right after payment and refund.
CREATE TABLE payments (
    payment_id     uuid PRIMARY KEY,
    reservation_id uuid NOT NULL,
    user_id        uuid NOT NULL,
    amount         bigint NOT NULL,
    balance        bigint NOT NULL,
    status         payment_status NOT NULL DEFAULT 'SUCCEEDED',
    paid_at        timestamptz NOT NULL,
    refunded_at    timestamptz
) WITH (fillfactor = 80);

-- Each worker, in the transaction of the effect: an outcome is written once and never changes. `body` is what a waiting
-- caller got; `request_hash` is of the call and the request, for repeats with the same Idempotency-Key.
CREATE TABLE requests (
    request_id   uuid PRIMARY KEY,
    user_id      uuid,
    kind         text NOT NULL,
    status       request_status NOT NULL,
    http_status  smallint NOT NULL,
    body         json NOT NULL,
    request_hash text,
    submitted_at timestamptz NOT NULL,
    finished_at  timestamptz NOT NULL,
    topic        text NOT NULL,
    partition    integer NOT NULL,
    "offset"     bigint NOT NULL
);
-- Rows arrive in time order, so a block range index finds the old ones for next to nothing.
CREATE INDEX requests_by_age ON requests USING brin (finished_at);

-- Each worker, in the transaction of each batch: how far the log is applied, whatever Kafka thinks.
CREATE TABLE applied_offsets (
    topic       text NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL,
    log_time    timestamptz NOT NULL,
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 50);
