//! An order book: limit orders of one instrument, matched by price and then by time.
//!
//! Commands are JSON: `{"buy": {"price": 100, "quantity": 5}}` and `{"sell": ...}` match what they can
//! against the other side, at the prices there, and rest with what is left; the answer has the order's number
//! and its trades. `{"cancel": {"order": 1}}` takes a resting order out. The query `{}` answers the best
//! price of both sides; watchers see each trade under `trade/`. Prices and quantities are whole numbers, of
//! ticks and lots.

use serde::{Deserialize, Serialize};
use statehouse_guest::json::{Json, answer, read};
use statehouse_guest::{Answer, Change, Refusal, Store, Stored, Table, View};

const NOT_UNDERSTOOD: u32 = 1;
const NO_ORDER: u32 = 2;
const TOO_MANY_TRADES: u32 = 3;

const PRICE_MAX: u64 = 1_000_000_000_000;
/// Each is an event, and a few writes.
const TRADES_MAX: usize = 1_000;

/// Orders to sell: price, number. The first is the best.
const SELLING: Table<(u64, u64), u64> = Table::new(b"sell/");
/// Orders to buy: the price below the highest there is, number. The first is the best.
const BUYING: Table<(u64, u64), u64> = Table::new(b"buy/");
/// Where a resting order is.
const ORDERS: Table<u64, Json<Place>> = Table::new(b"order/");
const LAST: Table<(), u64> = Table::new(b"last");

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    Buy,
    Sell,
}

#[derive(Serialize, Deserialize)]
struct Place {
    side: Side,
    price: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Command {
    Buy(Limit),
    Sell(Limit),
    Cancel { order: u64 },
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    price: u64,
    quantity: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {}

#[derive(Serialize)]
struct Trade {
    with: u64,
    price: u64,
    quantity: u64,
}

#[derive(Serialize)]
struct Placed {
    order: u64,
    resting: u64,
    trades: Vec<Trade>,
}

#[derive(Serialize)]
struct Best {
    buy: Option<u64>,
    sell: Option<u64>,
}

impl Side {
    fn other(self) -> Side {
        if self == Side::Buy { Side::Sell } else { Side::Buy }
    }

    fn table(self) -> Table<(u64, u64), u64> {
        if self == Side::Buy { BUYING } else { SELLING }
    }

    /// The price as the table orders it, and back.
    fn turned(self, price: u64) -> u64 {
        if self == Side::Buy { PRICE_MAX - price } else { price }
    }

    /// The best resting order: its number, price and quantity.
    fn best(self, store: &Store) -> Option<(u64, u64, u64)> {
        let ((turned, number), quantity) = self.table().first(store, 1).pop()?;
        Some((number, self.turned(turned), quantity))
    }

    /// Whether an order on this side with `limit` trades at `price`.
    fn takes(self, limit: u64, price: u64) -> bool {
        if self == Side::Buy { price <= limit } else { price >= limit }
    }
}

struct Book;

impl Stored for Book {
    fn command(change: &Change, store: &mut Store, command: &[u8]) -> Answer {
        match read(command, NOT_UNDERSTOOD)? {
            Command::Buy(limit) => place(change, store, Side::Buy, limit),
            Command::Sell(limit) => place(change, store, Side::Sell, limit),
            Command::Cancel { order } => cancel(store, order),
        }
    }

    fn query(_: &View, store: &Store, request: &[u8]) -> Answer {
        let Query {} = read(request, NOT_UNDERSTOOD)?;
        let price = |side: Side| side.best(store).map(|(_, price, _)| price);
        answer(&Best { buy: price(Side::Buy), sell: price(Side::Sell) })
    }
}

fn place(change: &Change, store: &mut Store, side: Side, limit: Limit) -> Answer {
    if !(1..PRICE_MAX).contains(&limit.price) || !(1..PRICE_MAX).contains(&limit.quantity) {
        let told = format!("prices and quantities are from 1 to {}", PRICE_MAX - 1);
        return Err(Refusal::new(NOT_UNDERSTOOD, told));
    }
    let order = LAST.get(store, &()).unwrap_or(0) + 1;
    LAST.set(store, &(), &order);
    let mut placed = Placed { order, resting: limit.quantity, trades: Vec::new() };
    let other = side.other();
    while placed.resting > 0
        && let Some((with, price, there)) =
            other.best(store).filter(|(_, price, _)| side.takes(limit.price, *price))
    {
        if placed.trades.len() == TRADES_MAX {
            let told = format!("the order would trade with more than {TRADES_MAX} others: place it in parts");
            return Err(Refusal::new(TOO_MANY_TRADES, told));
        }
        let quantity = there.min(placed.resting);
        placed.resting -= quantity;
        set(store, other, with, price, there - quantity);
        change.put(format!("trade/{order}/{with}").as_bytes(), format!("{quantity}@{price}").as_bytes());
        placed.trades.push(Trade { with, price, quantity });
    }
    set(store, side, order, limit.price, placed.resting);
    answer(&placed)
}

/// A resting order has this quantity now; without one it is gone.
fn set(store: &mut Store, side: Side, order: u64, price: u64, quantity: u64) {
    let key = (side.turned(price), order);
    if quantity == 0 {
        side.table().delete(store, &key);
        ORDERS.delete(store, &order);
    } else {
        side.table().set(store, &key, &quantity);
        ORDERS.set(store, &order, &Json(Place { side, price }));
    }
}

fn cancel(store: &mut Store, order: u64) -> Answer {
    let Some(Json(Place { side, price })) = ORDERS.get(store, &order) else {
        return Err(Refusal::new(NO_ORDER, format!("order {order} does not rest in the book")));
    };
    set(store, side, order, price, 0);
    Ok(Vec::new())
}

statehouse_guest::stored!(Book);

#[cfg(test)]
mod tests {
    use statehouse_guest::TestHost;

    use super::*;

    fn told(host: &mut TestHost, command: &str) -> String {
        String::from_utf8(host.apply(command.as_bytes()).unwrap()).unwrap()
    }

    fn book() -> TestHost {
        let mut host = TestHost::stored::<Book>(b"").unwrap();
        for (price, quantity) in [(101, 5), (100, 3), (100, 4)] {
            told(&mut host, &format!(r#"{{"sell": {{"price": {price}, "quantity": {quantity}}}}}"#));
        }
        host
    }

    #[test]
    fn the_scenario_comes_out_as_told() {
        TestHost::stored::<Book>(b"").unwrap().play(include_str!("../scenario.txt"));
    }

    #[test]
    fn the_best_price_trades_first_and_of_equal_prices_the_oldest() {
        let mut host = book();
        let placed = told(&mut host, r#"{"buy": {"price": 101, "quantity": 9}}"#);
        let trade =
            |with, price, quantity| format!(r#"{{"with":{with},"price":{price},"quantity":{quantity}}}"#);
        let trades = [trade(2, 100, 3), trade(3, 100, 4), trade(1, 101, 2)].join(",");
        assert_eq!(placed, format!(r#"{{"order":4,"resting":0,"trades":[{trades}]}}"#));
        assert_eq!(host.query(b"{}").unwrap(), br#"{"buy":null,"sell":101}"#);
        let events: Vec<_> = host.events().into_iter().map(|event| event.value).collect();
        assert_eq!(events, [b"3@100", b"4@100", b"2@101"]);
    }

    #[test]
    fn what_is_left_rests_and_can_be_cancelled() {
        let mut host = book();
        told(&mut host, r#"{"buy": {"price": 99, "quantity": 2}}"#);
        told(&mut host, r#"{"buy": {"price": 98, "quantity": 2}}"#);
        assert_eq!(host.query(b"{}").unwrap(), br#"{"buy":99,"sell":100}"#);
        told(&mut host, r#"{"cancel": {"order": 4}}"#);
        assert_eq!(host.query(b"{}").unwrap(), br#"{"buy":98,"sell":100}"#);
        assert_eq!(host.apply(br#"{"cancel": {"order": 4}}"#).unwrap_err().code, NO_ORDER);
        let placed = told(&mut host, r#"{"sell": {"price": 1, "quantity": 3}}"#);
        assert!(placed.contains(r#""resting":1"#) && placed.contains(r#""price":98"#), "{placed}");
        assert_eq!(host.query(b"{}").unwrap(), br#"{"buy":null,"sell":1}"#);
    }

    #[test]
    fn an_order_that_would_trade_with_too_many_leaves_no_trace() {
        let mut host = TestHost::stored::<Book>(b"").unwrap();
        for _ in 0..=TRADES_MAX {
            told(&mut host, r#"{"sell": {"price": 5, "quantity": 1}}"#);
        }
        let before = host.pairs();
        let refused = host.apply(br#"{"buy": {"price": 5, "quantity": 5000}}"#).unwrap_err();
        assert_eq!(refused.code, TOO_MANY_TRADES);
        assert_eq!(host.pairs(), before);
        assert!(host.events().is_empty());
    }
}
