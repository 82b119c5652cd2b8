// Another widget's view in a place of ours: the run that a panel has started.

const TRIES = 40, TRY_MS = 250;

// The model of a widget by its id; a page that was just loaded may not know it yet.
async function modelOf(manager, id) {
  for (let i = 0; i < TRIES; i += 1) {
    try {
      const found = await manager.get_model(id);
      if (found) return found;
    } catch { /* not yet */ }
    await new Promise((resolve) => { setTimeout(resolve, TRY_MS); });
  }
  return null;
}

// watch(facts) is called with what the guest says, and with null when there is none.
export function guestOf(model, place, view, watch) {
  let wanted = "", leave = null;
  const clear = () => {
    leave?.();
    leave = null;
    place.replaceChildren();
  };
  return {
    async show(id) {
      if (id === wanted) return;
      wanted = id;
      clear();
      watch?.(null);
      if (!id) return;
      const found = await modelOf(model.widget_manager, id);
      if (wanted !== id || !found) return;
      const look = () => watch?.(found.get("facts"));
      found.on("change:facts", look);
      const away = view({ model: found, el: place });
      leave = () => {
        found.off("change:facts", look);
        away();
      };
      look();
    },
    close() {
      wanted = "";
      clear();
    },
  };
}
