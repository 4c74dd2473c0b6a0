use super::{
    super::http::HttpList,
    addresses,
    fake::{Fake, answer},
    next, run, settings,
};
use std::time::{Duration, Instant};

#[test]
fn a_list_is_asked_for_as_a_whole() {
    let server = Fake::start(|number, request, stream| {
        let head = &request.head;
        assert!(
            head.contains("\r\nx-key: k\r\n") && !head.contains("if-none-match"),
            "{head}"
        );
        match number {
            // The same tag for another list, as where it is made of seconds.
            0 => answer(stream, "200 OK", "ETag: \"v1\"\r\n", "[\"h:1\"]"),
            1 => answer(
                stream,
                "200 OK",
                "ETag: \"v1\"\r\n",
                "[\"h:2\", {\"address\": \"h:3\"}]",
            ),
            2 => answer(stream, "204 No Content", "", ""),
            3 => answer(stream, "304 Not Modified", "", ""),
            _ => answer(stream, "200 OK", "", "[]"),
        }
    });
    let headers = [("X-Key".to_owned(), "k".to_owned())];
    let url = format!("{}/list?a=b", server.url());
    let interval = Duration::from_millis(50);
    let mut source = HttpList::new(
        &url,
        &headers,
        None,
        &settings(interval, Duration::from_secs(5)),
    );
    run(async {
        let began = Instant::now();
        let first = next(&mut source).await.expect("a list");
        assert!(first.version.starts_with("content "), "{}", first.version);
        assert_eq!(addresses(&mut source).await, "h:2 h:3");
        assert!(began.elapsed() >= interval, "the second was waited for");
        for status in ["204", "304"] {
            let error = next(&mut source).await.expect_err("nothing");
            assert!(error.contains(&format!("status {status}")), "{error}");
        }
        assert_eq!(addresses(&mut source).await, "");
    });
    assert_eq!(server.requests()[0], "GET /list?a=b");
}
