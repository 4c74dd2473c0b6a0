use super::*;

#[test]
fn each_reason_has_its_text() {
    let reason = |balance: Balance, without: &[usize]| {
        asked_one(&upstream(balance, three()), without, "192.0.2.1").1
    };
    let key = HashKey::default;
    for (reason, expected) in [
        (reason(Balance::RoundRobin, &[]), "it was next in rotation"),
        (
            reason(Balance::LeastConn, &[]),
            "0 sessions on it, the fewest for its weight; equals are picked in rotation",
        ),
        (
            reason(Balance::LeastTime(TimeOf::Connect), &[]),
            "its score of time, sessions and weight is 0, the least; equals are picked in rotation",
        ),
        (
            reason(Balance::First, &[]),
            "the first in order that can be picked",
        ),
        (reason(Balance::RandomTwo, &[0, 1]), "drawn by lot, alone"),
        (
            reason(Balance::Hash(key()), &[]),
            "the hash 23393 falls on 1 of 4 in the weights",
        ),
        (
            reason(ring(), &[]),
            "the key's hash is db610037, the next point on the ring is dc09fde6",
        ),
        (reason(maglev(), &[0, 1, 2]), "no backend can be picked"),
    ] {
        assert_eq!(reason, expected);
    }
    let without_one = reason(Balance::Hash(key()), &[1]);
    assert!(
        without_one.ends_with(", at try 2: before, it fell to backends that cannot be picked"),
        "{without_one}"
    );
    let without_one = reason(ring(), &[2]);
    assert!(
        without_one.starts_with("the key's hash is db610037, the first point that can be used, "),
        "{without_one}"
    );
    let slot = reason(maglev(), &[]);
    assert!(slot.starts_with("the key's hash falls on slot "), "{slot}");
    let drawn = reason(Balance::RandomTwo, &[0]);
    assert!(
        [
            "drawn by lot with 10.0.0.2:6379",
            "drawn by lot with 10.0.0.3:6379"
        ]
        .iter()
        .any(|expected| drawn.starts_with(expected)),
        "{drawn}"
    );
    let alone = upstream(ring(), vec![backend("10.0.0.1:6379", 1)]);
    let only = (Some(0), "the only backend".to_owned());
    assert_eq!(asked_one(&alone, &[], "192.0.2.1"), only);
    assert_eq!(asked_one(&alone, &[0], "192.0.2.1").0, None);
}

#[test]
fn an_empty_key_is_given_as_the_reason() {
    let balance = Balance::ConsistentHash(key(Variable::ProxyProtocolAddr), None);
    let answers = asked(
        &upstream(balance, three()),
        &[],
        &["192.0.2.1", "192.0.2.1"],
    );
    let expected = "the hash key is empty: it was next in rotation";
    assert!(answers.iter().all(|(_, reason)| reason == expected));
    assert_ne!(answers[0].0, answers[1].0);
}
