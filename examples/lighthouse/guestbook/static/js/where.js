// SPDX-License-Identifier: GPL-3.0-or-later
"use strict";

const button = document.querySelector("[data-ask]");
const tally = document.querySelector(".tally");

function show(counts, total) {
  tally.replaceChildren(
    ...Array.from(counts, ([node, count]) => {
      const row = document.createElement("li");
      const name = document.createElement("span");
      const bar = document.createElement("meter");
      name.textContent = `${node}: ${count}`;
      bar.max = total;
      bar.value = count;
      row.append(name, bar);
      return row;
    }),
  );
}

button.addEventListener("click", async () => {
  const counts = new Map();
  const total = 20;
  button.disabled = true;
  for (let asked = 0; asked < total; asked += 1) {
    let node = "no answer";
    try {
      const answer = await fetch(button.dataset.ask, { cache: "no-store" });
      if (answer.ok) {
        node = (await answer.json()).node;
      }
    } catch {
      // the node stays "no answer"
    }
    counts.set(node, (counts.get(node) ?? 0) + 1);
    show(new Map([...counts].sort()), total);
  }
  button.disabled = false;
});
