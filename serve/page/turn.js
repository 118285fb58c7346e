// One question and its answer or answers: the waiting, the words as they come, and what a person can do with them.

import { chat, vote, withdraw } from "/page/api.js";
import { button, icon, make } from "/page/dom.js";

export const CANDIDATES = 4;
const MAX_TOKENS = 96;

/** A box that one answer is written into. */
class Answer {
  constructor(title) {
    this.text = make("p", { class: "text waiting" });
    this.actions = make("div", { class: "actions" });
    this.facts = make("span", { class: "facts" });
    this.box = make("section", { class: "answer" }, [...(title ? [make("h3", {}, [title])] : []), this.text, this.actions]);
    this.said = "";
  }

  wait(words) {
    if (!this.said) this.text.textContent = words;
  }

  say(piece) {
    this.said += piece;
    this.text.classList.remove("waiting");
    this.text.textContent = this.said;
  }

  settle(cut, nothing = "(an empty answer)") {
    this.text.classList.remove("waiting");
    this.text.textContent = this.said.trim() ? this.said.trim() + (cut ? " …" : "") : nothing;
  }

  fail(message) {
    this.text.classList.remove("waiting");
    this.text.classList.add("trouble");
    this.text.textContent = message;
  }
}

/** Ask for `request.n` answers, write them into the boxes, and return what the server tells about the reply. */
async function listen(request, answers, signal, waiting) {
  const started = performance.now();
  const elapsed = () => ((performance.now() - started) / 1000).toFixed(1);
  const tick = setInterval(() => answers.forEach((answer) => answer.wait(`${waiting} ${elapsed()} s`)), 100);
  answers.forEach((answer) => answer.wait(waiting));
  const told = { id: null, attune: null, cut: answers.map(() => false) };
  try {
    for await (const chunk of chat({ max_tokens: MAX_TOKENS, ...request }, signal)) {
      told.id = chunk.id || told.id;
      told.attune = chunk.attune || told.attune;
      for (const choice of chunk.choices || []) {
        if (choice.delta?.content) answers[choice.index].say(choice.delta.content);
        if (choice.finish_reason) told.cut[choice.index] = choice.finish_reason === "length";
      }
    }
  } finally {
    clearInterval(tick);
  }
  answers.forEach((answer, index) => answer.settle(told.cut[index]));
  told.seconds = elapsed();
  return told;
}

export class Turn {
  /** `room` offers `receipts`, `say(text)` for short notes, and `conversation`, the id sent with every question. */
  constructor(question, messages, two, room) {
    Object.assign(this, { question, messages, two, room, told: null, refused: false, began: performance.now() });
    Object.assign(this, { votes: new Map(), sent: Promise.resolve(), chosen: two ? null : 0 });
    this.stopper = new AbortController();
    this.answers = two ? [new Answer("First answer"), new Answer("Second answer")] : [new Answer()];
    this.boxes = make("div", { class: two ? "answers pair" : "answers" }, this.answers.map((answer) => answer.box));
    this.article = make("article", { class: "turn", tabindex: "0", "aria-busy": "true", "aria-label": `Answer to: ${question}` }, [this.boxes]);
    this.asked = make("div", { class: "asked" }, [make("p", {}, [question])]);
  }

  get text() {
    return this.answers[this.chosen ?? 0].said.trim();
  }

  async run() {
    const request = { model: "attune", messages: this.messages, n: this.answers.length, candidates: CANDIDATES, conversation_id: this.room.conversation };
    try {
      this.told = await listen(request, this.answers, this.stopper.signal, `Choosing among ${CANDIDATES} answers`);
    } catch (error) {
      const stopped = error.name === "AbortError";
      this.refused = error.status === 400;
      const hint = this.refused && this.messages.length > 1 ? " What was said before is left out from here on: ask again." : "";
      this.answers.forEach((answer) => (answer.said || stopped ? answer.settle(true, "(stopped)") : answer.fail(`That did not work: ${error.message}${hint}`)));
      this.answers[0].actions.append(button("Ask again", {}, () => this.room.again(this)));
      return false;
    } finally {
      this.article.removeAttribute("aria-busy");
    }
    if (this.told.attune) this.offer();
    return true;
  }

  stop() {
    this.stopper.abort();
  }

  offer() {
    const { policy_version: policy, reward_version: reward, feedback_token: token } = this.told.attune;
    if (!token) {
      this.room.say("This answer could not be recorded, so it cannot be voted on");
      return;
    }
    this.answers.forEach((answer, index) => {
      const name = (words) => ({ "aria-pressed": "false", "aria-label": this.two ? `${words}: ${["first", "second"][index]} answer` : words });
      if (this.two) answer.actions.append(button("This one is better", { class: "pick", "data-pick": index, ...name("This one is better") }, () => this.prefer(index)));
      answer.up = button(this.two ? "" : "Good", name("Good answer"), () => this.thumb(index, 1), icon("thumb"));
      answer.down = button(this.two ? "" : "Not good", name("Not a good answer"), () => this.thumb(index, -1), icon("thumb", "down"));
      answer.actions.append(answer.up, answer.down);
      if (this.two) return;
      answer.actions.append(
        button("Write it better", {}, () => this.mend(answer), icon("pen")),
        button("Before and now", { "data-before": "" }, (event) => this.beforeAndNow(event.currentTarget), icon("sides")),
      );
    });
    const facts = `policy ${policy}, reward ${reward}, ${this.told.seconds} s`;
    const last = this.answers.at(-1);
    last.facts.textContent = facts;
    last.actions.append(last.facts);
  }

  /** Send a vote once those before it are through: votes of one person must not overtake each other while the server is away. */
  send(...one) {
    this.sent = this.sent.then(() => this.sendNow(...one));
    return this.sent;
  }

  /** Send a vote and start its receipt; the same vote again takes it back, another value replaces it. */
  async sendNow(slot, kind, value, choice, label) {
    const before = this.votes.get(slot);
    try {
      if (before && JSON.stringify(before.value) === JSON.stringify(value)) {
        await withdraw(before.id);
        this.votes.delete(slot);
        this.room.receipts.withdraw(before.id);
        this.room.say("Vote taken back");
        return null;
      }
      const { attune } = this.told;
      const { id } = await vote({ interaction_id: attune.interaction_id || this.told.id, kind, value, choice, token: attune.feedback_token });
      this.votes.set(slot, { id, value });
      this.room.receipts.add(id, label, this.question);
      this.room.say("Thank you, your vote is safe");
      return value;
    } catch (error) {
      this.room.say(`Your vote was not taken: ${error.message}`);
      return before ? before.value : null;
    }
  }

  async thumb(index, value) {
    if (!this.told?.attune) return;
    if (index === null) {
      this.room.say("Say first which answer is better: press 1 or 2");
      return;
    }
    const now = await this.send(`thumb-${index}`, "thumb", value, index, value === 1 ? "Good" : "Not good");
    this.answers[index].up.setAttribute("aria-pressed", String(now === 1));
    this.answers[index].down.setAttribute("aria-pressed", String(now === -1));
  }

  async prefer(index) {
    if (!this.told?.attune || !this.two) return;
    const named = this.told.attune.choices.map((choice) => choice.candidate);
    const now = await this.send("pair", "comparison", { better: named[index], worse: named[1 - index] }, 0, index === 0 ? "First is better" : "Second is better");
    const winner = now === null ? -1 : named.indexOf(now.better);
    this.chosen = winner < 0 ? null : winner;
    this.answers.forEach((answer, place) => {
      answer.box.classList.toggle("chosen", place === winner);
      answer.actions.querySelector("[data-pick]").setAttribute("aria-pressed", String(place === winner));
    });
  }

  /** Let the person write the answer as they would have had it, write it once more, or take back what they wrote. */
  mend(answer) {
    if (answer.box.querySelector(".mend")) return;
    const field = make("textarea", { rows: "3", "aria-label": "The answer as you would have had it", maxlength: "4000" });
    const sent = this.votes.get("edit")?.value;
    field.value = sent ?? answer.said.trim();
    const form = make("form", { class: "mend" }, [field, make("div", { class: "actions" }, [make("button", { class: "pick", type: "submit" }, ["Send this version"])])]);
    const actions = form.querySelector(".actions");
    actions.append(button("Leave it", {}, () => form.remove()));
    const takeBack = async () => (await this.send("edit", "edit", sent, 0, "Written better")) === null && form.remove();
    if (sent) actions.append(button("Take it back", {}, takeBack));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const text = field.value.trim();
      if (!text || text === (sent ?? answer.said.trim())) return;
      if ((await this.send("edit", "edit", text, 0, "Written better")) === text) form.remove();
    });
    answer.box.append(form);
    field.focus();
  }

  /** Put the same question to the bare base model and to what is live now, side by side; nothing is learned from a look back. */
  async beforeAndNow(opener) {
    opener.disabled = true;
    const before = new Answer("Before: the model as it came");
    const now = new Answer("Now: with what it learned from votes");
    const pair = make("div", { class: "answers pair", role: "group", "aria-label": "Before and now", "aria-busy": "true" }, [before.box, now.box]);
    this.article.append(pair);
    pair.scrollIntoView({ block: "nearest" });
    const ask = (answer, request, waiting) => listen({ messages: this.messages, purpose: "evaluation", ...request }, [answer], this.stopper.signal, waiting)
      .then((told) => {
        answer.facts.textContent = `policy ${told.attune?.policy_version ?? 0}, ${request.candidates > 1 ? `best of ${request.candidates}` : "one try"}, ${told.seconds} s`;
        answer.actions.append(answer.facts);
      })
      .catch((error) => answer.fail(`That did not work: ${error.message}`));
    await Promise.all([
      ask(before, { model: "attune@0", candidates: 1, rerank: "off" }, "Asking the base model"),
      ask(now, { model: "attune", candidates: CANDIDATES }, `Choosing among ${CANDIDATES} answers`),
    ]);
    pair.removeAttribute("aria-busy");
    pair.scrollIntoView({ block: "nearest" });
    opener.disabled = false;
  }
}
