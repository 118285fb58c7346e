"""The page in a real browser, by keyboard alone where it can be: chat, vote, compare, and watch the receipt move."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.fixtures.running import Running

pytestmark = pytest.mark.e2e
ANSWER_MS = 40_000
PICTURE = Path(__file__).parents[2] / "docs" / "page.png"


@pytest.fixture
def page(chromium: Browser, running: Running) -> Iterator[Page]:
    """Yield the page as a person on this machine opens it; anything it complains about in the console fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(running.url)
    yield page
    context.close()
    assert complaints == []


def send(page: Page, question: str) -> None:
    """Ask by keyboard and wait for the whole answer."""
    count = page.locator("article.turn").count()
    page.get_by_label("Your question").focus()
    page.keyboard.type(question)
    page.keyboard.press("Enter")
    expect(page.locator("article.turn")).to_have_count(count + 1)
    expect(page.locator("article.turn").nth(count)).not_to_have_attribute("aria-busy", "true", timeout=ANSWER_MS)


def test_the_page_names_the_live_versions(page: Page, running: Running) -> None:
    expect(page.locator("#policy-version")).to_have_text(re.compile(r"^\d+$"))
    expect(page.locator("#votes-received")).to_have_text(re.compile(r"^\d+$"))
    expect(page.locator("#live")).to_have_attribute("data-state", "up")
    expect(page.locator("#question")).to_be_focused()


def test_chat_and_thumbs_by_keyboard_and_the_receipts_move_on(page: Page) -> None:
    for number, (question, key, name) in enumerate(
        [("What is the capital of Portugal?", "+", "Good answer"), ("Name a bird.", "-", "Not a good answer")]
    ):
        send(page, question)
        turn = page.locator("article.turn").nth(number)
        expect(turn.locator(".text")).to_have_text(re.compile(r"\w"))
        page.keyboard.press("ArrowUp")
        expect(turn).to_be_focused()
        page.keyboard.press(key)
        expect(turn.get_by_role("button", name=name, exact=True)).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("Escape")
        expect(page.locator("#question")).to_be_focused()
    expect(page.locator(".receipt")).to_have_count(2)
    for receipt in page.locator(".receipt").all():
        expect(receipt).not_to_have_attribute("data-status", "received", timeout=10_000)
        expect(receipt.locator(".steps li").nth(2)).to_have_class("done", timeout=20_000)

    page.keyboard.press("ArrowUp")
    page.keyboard.press("+")
    turn = page.locator("article.turn").last
    expect(turn.get_by_role("button", name="Good answer", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(turn.get_by_role("button", name="Not a good answer")).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".receipt")).to_have_count(2)


def test_two_answers_side_by_side_and_one_is_better(page: Page) -> None:
    page.get_by_label("Show me two").check()
    send(page, "Why do people like rainy days?")
    turn = page.locator("article.turn").first
    expect(turn.locator(".answer")).to_have_count(2)
    names = turn.get_by_role("button").evaluate_all("all => all.map((one) => one.ariaLabel)")
    assert len(set(names)) == len(names) == 6
    page.keyboard.press("ArrowUp")
    page.keyboard.press("+")
    expect(page.locator("#toast")).to_contain_text("press 1 or 2")
    expect(page.locator(".receipt")).to_have_count(0)
    page.keyboard.press("2")
    expect(turn.locator("[data-pick='1']")).to_have_attribute("aria-pressed", "true")
    expect(turn.locator(".answer").nth(1)).to_have_class(re.compile("chosen"))
    expect(page.locator(".receipt").first).to_contain_text("Second is better")
    expect(page.locator(".receipt").first).not_to_have_attribute("data-status", "received", timeout=10_000)
    page.keyboard.press("+")
    expect(page.get_by_role("button", name="Good answer: second answer", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Good answer: first answer", exact=True)).to_have_attribute("aria-pressed", "false")


def test_a_vote_given_twice_is_taken_back(page: Page) -> None:
    send(page, "Name a river.")
    good = page.get_by_role("button", name="Good answer", exact=True)
    good.click()
    expect(good).to_have_attribute("aria-pressed", "true")
    good.click()
    expect(good).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".receipt")).to_have_attribute("data-status", "withdrawn")


def test_votes_outlive_a_reload_and_can_still_be_taken_back(page: Page) -> None:
    send(page, "Name a mountain.")
    page.get_by_role("button", name="Good answer", exact=True).click()
    expect(page.locator(".receipt")).not_to_have_attribute("data-status", "received", timeout=10_000)
    page.reload()
    expect(page.locator(".receipt")).to_contain_text("Name a mountain.")
    page.get_by_role("button", name="Take it back").click()
    expect(page.locator(".receipt")).to_have_attribute("data-status", "withdrawn")


def test_votes_can_be_taken_back_after_a_new_conversation_has_begun(page: Page) -> None:
    send(page, "Name a lake.")
    page.get_by_role("button", name="Good answer", exact=True).click()
    expect(page.locator(".receipt")).to_contain_text("Name a lake.")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("article.turn")).to_have_count(0)
    page.get_by_role("button", name="Take it back").click()
    expect(page.locator(".receipt")).to_have_attribute("data-status", "withdrawn")


def test_an_answer_that_was_stopped_can_be_asked_for_again(page: Page) -> None:
    page.get_by_label("Your question").fill("Tell me about tea.")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator("article.turn")).to_have_count(2)
    expect(page.locator("article.turn").nth(1)).not_to_have_attribute("aria-busy", "true", timeout=ANSWER_MS)
    expect(page.locator("article.turn").nth(1).get_by_role("button", name="Good answer", exact=True)).to_be_visible()


def test_a_double_click_on_send_asks_once_and_stops_nothing(page: Page) -> None:
    page.get_by_label("Your question").fill("Name a flower.")
    page.get_by_role("button", name="Send").dblclick()
    expect(page.locator("article.turn")).to_have_count(1)
    expect(page.locator("article.turn")).not_to_have_attribute("aria-busy", "true", timeout=ANSWER_MS)
    expect(page.get_by_role("button", name="Good answer", exact=True)).to_be_visible()


def test_a_key_held_down_is_one_vote(page: Page) -> None:
    send(page, "Name a tree.")
    page.keyboard.press("ArrowUp")
    for _ in range(4):
        page.keyboard.down("+")
    page.keyboard.up("+")
    expect(page.get_by_role("button", name="Good answer", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".receipt")).not_to_have_attribute("data-status", "received", timeout=10_000)
    expect(page.locator(".receipt")).not_to_have_attribute("data-status", "withdrawn")


def test_what_was_written_better_can_be_written_anew_and_taken_back(page: Page) -> None:
    send(page, "Suggest a name for a dog.")
    field = page.get_by_label("The answer as you would have had it")
    for before, text in ((None, "Call him Bo."), ("Call him Bo.", "Call him Ed.")):
        page.get_by_role("button", name="Write it better").click()
        if before:
            expect(field).to_have_value(before)
        field.fill(text)
        page.get_by_role("button", name="Send this version").click()
        expect(field).to_have_count(0)
    expect(page.locator(".receipt")).to_have_count(1)
    page.get_by_role("button", name="Write it better").click()
    expect(field).to_have_value("Call him Ed.")
    page.get_by_role("button", name="Take it back").click()
    expect(field).to_have_count(0)
    expect(page.locator(".receipt")).to_have_attribute("data-status", "withdrawn")


def test_votes_wait_for_the_server_and_do_not_overtake_each_other(chromium: Browser, running: Running) -> None:
    with chromium.new_context() as context:
        page, votes = context.new_page(), []
        page.goto(running.url)

        def away_at_first(route: Route) -> None:
            votes.append((route.request.post_data_json["value"], route.request.headers["idempotency-key"]))
            if len(votes) < 3:
                route.fulfill(status=503, json={"error": {"message": "The server restarts."}})
            else:
                route.continue_()

        page.route("**/v1/feedback", away_at_first)
        send(page, "Name a bridge.")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("+")
        page.keyboard.press("-")
        expect(page.get_by_role("button", name="Not a good answer")).to_have_attribute("aria-pressed", "true", timeout=10_000)
        expect(page.get_by_role("button", name="Good answer", exact=True)).to_have_attribute("aria-pressed", "false")
        assert [value for value, _ in votes] == [1, 1, 1, -1]
        assert [len({key for value, key in votes if value == given}) for given in (1, -1)] == [1, 1], "sent again, not anew"


def test_a_browser_of_another_machine_is_told_how_to_get_in(chromium: Browser, running: Running) -> None:
    with chromium.new_context(extra_http_headers={"Via": "1.1 proxy"}) as context:
        page = context.new_page()
        page.goto(running.url)
        expect(page.get_by_role("alert")).to_contain_text(f":127.0.0.1:{running.url.rsplit(':', 1)[1]}")
        for control in page.locator("main").locator("button, textarea, input").all():
            expect(control).to_be_disabled()


def status_as(page: Page, change: Callable[[dict[str, Any]], None]) -> None:
    """Have the page read the server's status with something changed in it."""

    def answer(route: Route) -> None:
        response = route.fetch()
        said = response.json()
        change(said)
        route.fulfill(response=response, json=said)

    page.route("**/v1/attune/status", answer)


def test_the_page_says_that_learning_has_stopped_and_why(page: Page) -> None:
    status_as(page, lambda said: said.update(learner_stopped=["answers shrink"]))
    send(page, "Name a colour.")
    page.get_by_role("button", name="Good answer", exact=True).click()
    expect(page.locator("#learning-stopped")).to_contain_text("Learning has stopped: answers shrink")
    expect(page.locator(".receipt")).to_contain_text("once learning goes on", timeout=20_000)
    page.unroute("**/v1/attune/status")
    expect(page.locator("#learning-stopped")).to_be_hidden(timeout=10_000)


def test_the_page_says_which_versions_were_not_taken_into_service_and_does_not_say_that_they_rank(page: Page) -> None:
    refused = [
        {"kind": "policy", "number": 1007, "reason": "it holds what is no number"},
        {"kind": "policy", "number": 0, "reason": "old news"},
    ]
    status_as(page, lambda said: said.update(refused=refused, reward_version=0))
    send(page, "Name a shape.")
    page.get_by_role("button", name="Good answer", exact=True).click()
    expect(page.locator("#versions-refused")).to_contain_text("policy 1007 (it holds what is no number).")
    expect(page.locator("#versions-refused")).not_to_contain_text("old news")
    expect(page.locator(".receipt .sentence")).to_have_text(re.compile(r"^Reward model \d+ has learned it;"), timeout=20_000)
    page.unroute("**/v1/attune/status")
    expect(page.locator("#versions-refused")).to_be_hidden(timeout=10_000)
    expect(page.locator(".receipt .sentence")).to_have_text(re.compile("chooses by it already|Policy|policy"), timeout=10_000)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"status": "rolled_back", "policy_version": 7}, "Policy 7 learned it and was rolled back."),
        ({"status": "unusable", "reason": "it says the same as the answer"}, "nothing is learned from it: it says the same as the answer."),
        ({"status": "learned", "policy_version": 7}, "In policy 7, which is not live yet."),
    ],
)
def test_a_receipt_says_what_became_of_the_vote(page: Page, said: dict[str, Any], sentence: str) -> None:
    def answer(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json=response.json() | said)

    page.route(re.compile(r"/v1/feedback/.+"), answer)
    send(page, "Name a sea.")
    page.get_by_role("button", name="Good answer", exact=True).click()
    expect(page.locator(".receipt .sentence")).to_contain_text(sentence, timeout=10_000)


def test_a_conversation_that_grew_too_long_goes_on_without_what_was_said_before(chromium: Browser, running: Running) -> None:
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto(running.url)
        field, turns = page.get_by_label("Your question"), page.locator("article.turn")
        for number in range(3):
            field.fill("Name a wind. " * 300)
            field.press("Enter")
            expect(turns).to_have_count(number + 1)
            expect(turns.nth(number)).not_to_have_attribute("aria-busy", "true", timeout=ANSWER_MS)
            if turns.nth(number).locator(".trouble").count():
                break
        expect(turns.last.locator(".trouble")).to_contain_text("left out from here on")
        turns.last.get_by_role("button", name="Ask again").click()
        expect(turns).to_have_count(number + 2)
        expect(turns.last).not_to_have_attribute("aria-busy", "true", timeout=ANSWER_MS)
        expect(turns.last.get_by_role("button", name="Good answer", exact=True)).to_be_visible()


def test_a_policy_that_comes_back_after_the_engine_was_away_is_not_a_new_one(page: Page) -> None:
    send(page, "Name a metal.")
    versions = [1007, 0, 1007, 1008]
    status_as(page, lambda said: said.update(policy_version=versions.pop(0) if len(versions) > 1 else versions[0]))
    expect(page.locator('[data-policy="1008"]')).to_be_visible(timeout=15_000)
    assert page.locator("[data-policy]").evaluate_all("all => all.map((one) => one.dataset.policy)") == ["1007", "1008"]


def test_an_answer_is_written_better_and_before_and_now_stand_side_by_side(page: Page, tmp_path: Path) -> None:
    send(page, "Suggest a name for a grey cat.")
    page.get_by_role("button", name="Write it better").click()
    field = page.get_by_label("The answer as you would have had it")
    field.fill("Call her Ash.")
    page.get_by_role("button", name="Send this version").click()
    expect(field).to_have_count(0)
    expect(page.locator(".receipt").first).to_contain_text("Written better")
    asked: list[dict[str, Any]] = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.url.endswith("/chat/completions") else None)
    page.get_by_role("button", name="Before and now").click()
    pair = page.get_by_role("group", name="Before and now")
    expect(pair).not_to_have_attribute("aria-busy", "true", timeout=ANSWER_MS)
    expect(pair.locator(".answer").nth(0).locator(".facts")).to_contain_text("policy 0")
    expect(pair.locator(".trouble")).to_have_count(0)
    assert [body["purpose"] for body in asked] == ["evaluation", "evaluation"], "nothing is learned from a look back"
    page.wait_for_timeout(1500)
    file = PICTURE if os.environ.get("ATTUNE_WRITE_DOCS") == "1" else tmp_path / "page.png"
    page.screenshot(path=file)
    assert file.stat().st_size > 20_000


def test_hostile_text_stays_text(page: Page) -> None:
    send(page, "<img src=x onerror=alert(1)> <b>bold</b>")
    expect(page.locator(".asked p")).to_have_text("<img src=x onerror=alert(1)> <b>bold</b>")
    expect(page.locator(".log img, .log b")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_in_any_width_or_scheme(page: Page, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": width, "height": 800})
    body = page.locator("body").bounding_box()
    assert body is not None
    for selector in ("#composer", "#send", "aside", ".top"):
        box = page.locator(selector).bounding_box()
        assert box is not None, selector
        assert box["x"] >= 0, selector
        assert box["x"] + box["width"] <= width + 1, selector


def test_every_control_has_a_name_and_can_be_reached_by_tab(page: Page) -> None:
    send(page, "Name a tree.")
    for control in page.locator("button:visible, textarea:visible, input:visible, summary:visible").all():
        name = control.get_attribute("aria-label") or control.inner_text().strip() or control.get_attribute("id")
        assert name
        assert control.get_attribute("tabindex") != "-1"
    page.locator("#question").focus()
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.locator(":focus").first.inner_text().strip() if page.locator(":focus").count() else "")
    assert "Send" in seen
