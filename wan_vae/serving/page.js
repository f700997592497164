"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const drop = byId("drop");
  let request = null;
  let address = null; // of the report that is shown

  function say(text, failed = false) {
    byId("state").textContent = text;
    byId("state").classList.toggle("failed", failed);
  }

  // A bar without a value says that something is done, but not how much of it.
  function progress(part) {
    if (part === null) byId("bar").removeAttribute("value");
    else byId("bar").value = part;
  }

  function ended(text, failed = false) {
    request = null;
    byId("work").hidden = true;
    byId("clip").value = ""; // or choosing the same clip again would be no change
    say(text, failed);
  }

  // An answer is lines of frames done and frames in all, an empty line, and the report.
  function follow(answer) {
    const lines = answer.slice(0, answer.indexOf("\n\n") + 1 || undefined).split("\n").slice(0, -1);
    if (lines.length === 0) return;
    const [done, total] = lines[lines.length - 1].split(" ").map(Number);
    if (!(total > 0)) return; // an error, which `show` says
    progress(done / total);
    say(`Frame ${done} of ${total}`);
  }

  function show(answer, name) {
    const at = answer.indexOf("\n\n");
    if (at < 0) {
      ended(answer.trimEnd().split("\n").pop().replace(/^error: /, ""), true);
      return;
    }
    if (address !== null) URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([answer.slice(at + 2)], { type: "text/html" }));
    byId("report").src = byId("open").href = byId("save").href = address;
    byId("save").download = `${name.replace(/\.[^.]*$/, "")}.html`;
    byId("result").hidden = false;
    ended(`The report of ${name} is below.`);
  }

  function refusal(sent) {
    try {
      return JSON.parse(sent.responseText).detail;
    } catch {
      return `The server answered with status ${sent.status}.`;
    }
  }

  function start(clip) {
    if (request !== null) request.abort();
    const sent = (request = new XMLHttpRequest());
    const current = (act) => () => sent === request && act();
    sent.open("POST", `report?${new URLSearchParams({ name: clip.name })}`);
    const token = byId("token")?.value;
    if (token) sent.setRequestHeader("Authorization", `Bearer ${token}`);
    sent.upload.onprogress = (event) => {
      if (sent !== request) return;
      progress(event.loaded / event.total);
      say(`Sending ${clip.name}`);
    };
    sent.upload.onload = current(() => {
      progress(null);
      say("Waiting for the model");
    });
    sent.onprogress = current(() => sent.status === 200 && follow(sent.responseText));
    sent.onload = current(() => {
      if (sent.status === 200) show(sent.responseText, clip.name);
      else ended(refusal(sent), true);
    });
    sent.onerror = current(() => ended("The server ended the connection; its log says why.", true));
    byId("work").hidden = false;
    progress(null);
    say(`Sending ${clip.name}`);
    sent.send(clip);
  }

  byId("clip").addEventListener("change", (event) => {
    if (event.target.files.length > 0) start(event.target.files[0]);
  });
  byId("cancel").addEventListener("click", () => {
    request.abort();
    ended("Cancelled.");
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault(); // or the browser would open the clip
    drop.classList.remove("over");
    const [clip] = event.dataTransfer.files;
    if (clip) start(clip);
  });
})();
