import type { Connection, PeerId as LibPeerId, Topology } from "@libp2p/interface"
import type { GossipSubComponents } from "@chainsafe/libp2p-gossipsub"

type Registrar = GossipSubComponents["registrar"]

/**
 * libp2p's registrar as gossipsub sees it: peers exist only once they are admitted. Before that they get no gossip stream
 * from us, and one that they open is reset. libp2p tells gossipsub of a peer once, when identify has run, so this keeps
 * what it was told, and passes it on at admission.
 *
 * `serves` asks whether streams on a connection are served; `admitted` gives the connections on which the other side also
 * serves us. (libp2p's own middleware, `registrar.use`, is no alternative: version 3.3.11 appends the handler to the
 * registered list for every stream, so the second stream is handled twice.)
 */
export interface GatedRegistrar {
  registrar: Registrar
  /** A connection of `peer` was admitted. */
  joined(peer: LibPeerId, connection: Connection): void
  /** The last admitted connection of `peer` closed. */
  left(peer: LibPeerId): void
}

export function gateRegistrar(registrar: Registrar, serves: (connection: Connection) => boolean): GatedRegistrar {
  const topologies = new Map<string, Topology>()

  return {
    registrar: {
      handle,
      register,
      unregister,
      unhandle: registrar.unhandle.bind(registrar),
      getProtocols: registrar.getProtocols.bind(registrar),
      getHandler: registrar.getHandler.bind(registrar),
      getTopologies: registrar.getTopologies.bind(registrar),
      use: registrar.use.bind(registrar),
      unuse: registrar.unuse.bind(registrar),
      getMiddleware: registrar.getMiddleware.bind(registrar),
    },
    joined: (peer, connection) => {
      // The same topology stands under each version of the protocol.
      for (const topology of new Set(topologies.values())) void topology.onConnect?.(peer, connection)
    },
    left: (peer) => {
      for (const topology of new Set(topologies.values())) void topology.onDisconnect?.(peer)
    },
  }

  async function handle(...[protocol, handler, options]: Parameters<Registrar["handle"]>): Promise<void> {
    await registrar.handle(
      protocol,
      (stream, connection) => {
        if (serves(connection)) return handler(stream, connection)
        stream.abort(new Error("not admitted"))
        return undefined
      },
      options,
    )
  }

  function register(protocol: string, topology: Topology): Promise<string> {
    // Registered with libp2p only for its id and place in the list: peers come through `joined`.
    return registrar.register(protocol, {}).then((id) => {
      topologies.set(id, topology)
      return id
    })
  }

  function unregister(id: string): void {
    topologies.delete(id)
    registrar.unregister(id)
  }
}
