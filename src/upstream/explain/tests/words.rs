use super::*;

#[test]
fn the_words_for_each_reason() {
    let said = |balance: Balance, without: &[usize]| {
        asked_one(&upstream(balance, three()), without, "192.0.2.1").1
    };
    let key = HashKey::default;
    for (said, words) in [
        (said(Balance::RoundRobin, &[]), "it was its turn"),
        (
            said(Balance::LeastConn, &[]),
            "0 sessions on it, the fewest for its weight; turns decide among equals",
        ),
        (
            said(Balance::LeastTime(TimeOf::Connect), &[]),
            "its score of time, sessions and weight is 0, the least; turns decide among equals",
        ),
        (
            said(Balance::First, &[]),
            "the first in order that can be picked",
        ),
        (said(Balance::RandomTwo, &[0, 1]), "drawn by lot, alone"),
        (
            said(Balance::Hash(key()), &[]),
            "the hash 23393 falls on 1 of 4 in the weights",
        ),
        (
            said(ring(), &[]),
            "the key's hash is db610037, the next point on the ring is dc09fde6",
        ),
        (said(maglev(), &[0, 1, 2]), "no backend can be picked"),
    ] {
        assert_eq!(said, words);
    }
    let said_without = said(Balance::Hash(key()), &[1]);
    assert!(
        said_without.ends_with(", at try 2: before, it fell to backends that cannot be picked"),
        "{said_without}"
    );
    let said_without = said(ring(), &[2]);
    assert!(
        said_without.starts_with("the key's hash is db610037, the first point that can be used, "),
        "{said_without}"
    );
    let slot = said(maglev(), &[]);
    assert!(slot.starts_with("the key's hash falls on slot "), "{slot}");
    let drawn = said(Balance::RandomTwo, &[0]);
    assert!(
        [
            "drawn by lot with 10.0.0.2:6379",
            "drawn by lot with 10.0.0.3:6379"
        ]
        .iter()
        .any(|words| drawn.starts_with(words)),
        "{drawn}"
    );
    let alone = upstream(ring(), vec![backend("10.0.0.1:6379", 1)]);
    let only = (Some(0), "the only backend".to_owned());
    assert_eq!(asked_one(&alone, &[], "192.0.2.1"), only);
    assert_eq!(asked_one(&alone, &[0], "192.0.2.1").0, None);
}

#[test]
fn an_empty_key_says_so() {
    let balance = Balance::ConsistentHash(key(Variable::ProxyProtocolAddr), None);
    let answers = asked(
        &upstream(balance, three()),
        &[],
        &["192.0.2.1", "192.0.2.1"],
    );
    let reason = "the hash key is empty: it was its turn";
    assert!(answers.iter().all(|(_, said)| said == reason));
    assert_ne!(answers[0].0, answers[1].0);
}
